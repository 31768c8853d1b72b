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
        guard !Names.isPartial(name) else {
            throw StoreError(
                .invalidInput, "names that begin with \(Names.partialPrefix) are kept for checkpoints that are being received",
                remedy: "Choose another name.", medium: medium.name, checkpoint: name)
        }
        return try begin(name, options: options) { base throws(StoreError) in
            if try checkpointID(of: name, in: base) != nil { throw Self.nameTaken(name, medium) }
            guard let parent else { return nil }
            return try record(named: parent, in: base)
        }
    }

    /// Begins a checkpoint that `commit(as:)` will give its identity to.
    ///
    /// - Parameters:
    ///   - name: what messages call it.
    ///   - base: the checkpoint that regions are taken over from; nil: none.
    /// - Throws: `.notFound` when the base is not there; `.invalidInput` for a bad name, `.readOnly`, `.storeFailed`.
    package func begin(
        _ name: String, over base: CheckpointID?, options: WriterOptions = WriterOptions()
    ) throws(StoreError) -> CheckpointWriter {
        try begin(name, options: options) { slot throws(StoreError) in
            guard let base else { return nil }
            guard let value = try catalogValue(of: base, in: slot) else {
                throw StoreError(
                    .notFound, "checkpoint \(base), which it is to be over, is not there", remedy: "`ckstore list` shows those that there are.",
                    medium: medium.name, checkpoint: name)
            }
            return try blocks(in: slot).readRecord(value, id: base)
        }
    }

    private func begin(
        _ name: String, options: WriterOptions, parent: (Slot) throws(StoreError) -> CheckpointRecord?
    ) throws(StoreError) -> CheckpointWriter {
        try checkUsable(forWriting: true)
        do { try Names.check(name) } catch {
            throw StoreError(.invalidInput, "\(error)", remedy: "Choose another name.", medium: medium.name, checkpoint: name)
        }
        for reference in options.references + [name] { try checkReference(reference) }
        let base = try register()
        do throws(StoreError) {
            let parentRecord = try parent(base)
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
        try commit(writers, as: [:])
    }

    /// The same, with an identity of their own for those that are to have one, and what else the commit is to do once they are there.
    func commit(
        _ writers: [CheckpointWriter], as identities: [CheckpointID: CheckpointIdentity],
        then more: (CommitTransaction) throws(StoreError) -> Void = { _ in }
    ) throws(StoreError) -> [CheckpointInfo] {
        precondition(writers.allSatisfy { $0.store === self }, "all writers must be of this store")
        defer { for writer in writers { writer.endUncommitted() } }
        guard !writers.isEmpty else { return [] }
        let groupID = writers.count > 1 ? environment.newID().rawValue : 0
        var prepared: [CheckpointWriter.Prepared] = []
        for writer in writers { prepared.append(try writer.prepare(groupID: groupID, as: identities[writer.id])) }
        // Much data is flushed before the commit lock is taken, so that others don't wait for it; a
        // little is covered by the flush of the commit itself.
        if prepared.reduce(0, { $0 + $1.writtenBytes }) > Self.smallCommitBytes {
            do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
        }
        let generation = try commit { transaction throws(StoreError) in
            for (writer, one) in zip(writers, prepared) {
                try transaction.add(one.record, at: one.pointer, over: writer.parentID, references: one.references)
                for use in one.uses { try transaction.append(use) }
            }
            try more(transaction)
            return transaction.generation
        }
        for (writer, one) in zip(writers, prepared) { writer.didCommit(one.uses) }
        return prepared.map { CheckpointInfo($0.record, generation: generation) }
    }

    static let smallCommitBytes = 4 << 20
}
