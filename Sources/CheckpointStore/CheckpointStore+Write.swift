// Beginning and committing checkpoints.

import Media
import StoreFormat
import Threading
import Units

extension CheckpointStore {
    /// Begins a checkpoint.
    ///
    /// - Parameter parent: the checkpoint that regions are taken over from, by its name or one that moves; nil: none.
    /// - Throws: `.exists` when that name is taken, `.notFound` when the parent is not there,
    ///   `.invalidInput` for a bad name and for `latest`, `.readOnly`, `.storeFailed`.
    public func begin(
        _ name: String, parent: String? = nil, options: WriterOptions = WriterOptions()
    ) throws(StoreError) -> CheckpointWriter {
        try checkUsable(forWriting: true)
        do { try Names.check(name) } catch {
            throw StoreError(.invalidInput, "\(error)", remedy: "Choose another name.", medium: medium.name, checkpoint: name)
        }
        for reference in options.references + [name] { try checkReference(reference) }
        let base = try register()
        do throws(StoreError) {
            if try checkpointID(of: name, in: base) != nil { throw Self.nameTaken(name, medium) }
            var parentRecord: CheckpointRecord?
            if let parent { parentRecord = try record(named: parent, in: base) }
            let writer = CheckpointWriter(store: self, name: name, base: base, parent: parentRecord, options: options)
            state.withLock { $0.writers[writer.id] = WeakWriter(writer) }
            return writer
        } catch {
            unregister(base.generation)
            throw error
        }
    }

    private func record(named name: String, in slot: Slot) throws(StoreError) -> CheckpointRecord {
        guard let id = try checkpointID(of: name, in: slot), let value = try catalogValue(of: id, in: slot) else {
            throw StoreError(
                .notFound, "there is no checkpoint of that name to be the parent",
                remedy: "`ckstore list` shows those that there are.", medium: medium.name, checkpoint: name)
        }
        return try blocks(in: slot).readRecord(value, id: id)
    }

    /// Commits several checkpoints of this store together: on return all are durable and visible; on an error none is.
    ///
    /// The writers end in any case.
    /// - Throws: see `CheckpointWriter.commit`.
    @discardableResult
    public func commit(_ writers: [CheckpointWriter]) throws(StoreError) -> [CheckpointInfo] {
        precondition(writers.allSatisfy { $0.store === self }, "all writers must be of this store")
        defer { for writer in writers { writer.endUncommitted() } }
        guard !writers.isEmpty else { return [] }
        let groupID = writers.count > 1 ? environment.newID().rawValue : 0
        var prepared: [CheckpointWriter.Prepared] = []
        for writer in writers { prepared.append(try writer.prepare(groupID: groupID)) }
        // Much data is flushed before the commit lock is taken, so that others don't wait for it; a
        // little is covered by the flush of the commit itself.
        if prepared.reduce(0, { $0 + $1.writtenBytes }) > Self.smallCommitBytes {
            do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
        }
        let generation = try commit { transaction throws(StoreError) in
            for one in prepared {
                try transaction.add(one.record, at: one.pointer, references: one.references)
                for use in one.uses { try transaction.append(use) }
            }
            return transaction.generation
        }
        for (writer, one) in zip(writers, prepared) { writer.didCommit(one.uses) }
        return prepared.map { CheckpointInfo($0.record, generation: generation) }
    }

    private static let smallCommitBytes = 4 << 20
}
