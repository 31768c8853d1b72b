// Damaged blocks of the index, made again from what stands around them.
//
// A pointer's checksum is that of the bytes that were committed, so a guess that has it is right. Most guesses are: what saving writes
// follows from the pages that it stores and from the tree that it starts from.
//
// Invariants:
// - What is returned has the pointer's checksum.
// - Memory and guesses are bounded for each block.

import StoreFormat
import Units

/// Why a block could not be made again.
enum DerivationFailure: Error {
    /// No tree that can be read leads there: something above it is damaged too.
    case unreachable
    /// Records: nothing but a store that has the checkpoint knows its labels and its time.
    case needsReplica
    /// What it was made of is gone, or there are too many ways.
    case noGuessIsRight
}

/// Makes some damaged blocks again. Confined to one thread.
struct IndexDerivation {
    private let store: CheckpointStore
    private let slot: Slot
    private let donor: PageDonor?
    private let mostGuesses: Int
    private let nodes: [BlockPointer: TreeNode]
    private let records: [BlockPointer: RecordWanted]
    private let losses: [BlockPointer: [DamageLoss]]
    private let relatives: Relatives

    /// Blocks that are dealt with in one scan of the store.
    static let blocksPerScan = 256
    /// Checkpoints that are asked what they have in a span.
    private static let askedCheckpoints = 16

    /// Scans the store for what belongs to damaged blocks.
    /// - Parameters:
    ///   - losses: the damaged blocks, and what each takes away.
    ///   - slot: a generation that is registered.
    /// - Throws: `.corrupt` when the catalog or the forwarding tables can't be read; what the media throw.
    init(
        _ losses: [BlockPointer: [DamageLoss]], in slot: Slot, _ store: CheckpointStore, donor: PageDonor?, mostGuesses: Int
    ) throws(StoreError) {
        (self.store, self.slot, self.donor, self.losses, self.mostGuesses) = (store, slot, donor, losses, mostGuesses)
        nodes = try RunListings(of: Set(losses.keys), in: slot, store).nodes
        records = try Self.records(losses.keys.filter { $0.kind == .checkpointRecord }, slot, store, donor)
        var wanted = RelativesWanted()
        wanted.places = Set(nodes.values.map { NodePosition($0) })
        wanted.blocks = Set(losses.keys)
        for record in records.values { wanted.regions.formUnion(record.model.regions.map(\.key)) }
        relatives = try Relatives(wanted, in: slot, store)
    }

    /// The bytes of a damaged block, as they were committed.
    func derive(_ pointer: BlockPointer) throws(StoreError) -> Result<[UInt8], DerivationFailure> {
        if let copy = relatives.copies[pointer] { return .success(copy) }
        let judge = GuessJudge(pointer, most: mostGuesses, acceptsAny: store.has(.derivesUnchecked))
        let bytes: [UInt8]?
        if pointer.kind == .checkpointRecord {
            guard let wanted = records[pointer] else { return .failure(.needsReplica) }
            bytes = RecordDerivation(wanted, relatives, judge).bytes()
        } else {
            guard let node = nodes[pointer] else { return .failure(.unreachable) }
            bytes = node.level > 0 ? InnerDerivation(node, relatives, judge).bytes() : try leaf(node, judge)
        }
        return bytes.map { .success($0) } ?? .failure(.noGuessIsRight)
    }

    // MARK: leaves

    private func leaf(_ node: TreeNode, _ judge: GuessJudge) throws(StoreError) -> [UInt8]? {
        var content = [PageContent](repeating: .unknown, count: pagesPerSpan)
        var limits: Set<Int> = []
        let owners = Set((losses[node.pointer] ?? []).flatMap { $0.checkpoints.map(\.id) }).sorted()
        for id in owners.prefix(Self.askedCheckpoints) {
            guard let (region, seen) = try pagesSeen(node, by: id) else { continue }
            let first = node.first.firstPage.rawValue
            limits.insert(Int(min(UInt64(pagesPerSpan), region.pageCount.rawValue - min(first, region.pageCount.rawValue))))
            guard let donor, content.contains(.unknown), let has = try donor.content(of: node.regionKey, span: node.first, in: id) else { continue }
            seen.forEach { if content[$0] == .unknown { content[$0] = has[$0] } }
        }
        return LeafDerivation(node, relatives, content: content, limits: limits, judge).bytes()
    }

    /// The region of a checkpoint that has the leaf, and the pages that it sees through it.
    private func pagesSeen(_ node: TreeNode, by id: CheckpointID) throws(StoreError) -> (RegionRecord, PageSet)? {
        do throws(StoreError) {
            let blocks = store.blocks(in: slot)
            guard let value = try store.catalogValue(of: id, in: slot),
                let region = try blocks.readRecord(value, id: id).regions.first(where: { $0.key == node.regionKey }),
                let leaf = try ParentTree(blocks: blocks, region: region).leaf(of: node.first)
            else { return nil }
            if leaf == node.pointer { return (region, .all) }
            guard leaf.kind == .patchLeaf else { return nil }
            let patch = try blocks.readPatch(leaf, key: node.regionKey, span: node.first)
            guard patch.base == node.pointer else { return nil }
            return (region, patch.entries.reduce(into: PageSet.all) { $0.remove(Int($1.page)) })
        } catch {
            guard error.isDamage else { throw error }
            return nil
        }
    }

    // MARK: records

    private static func records(
        _ pointers: [BlockPointer], _ slot: Slot, _ store: CheckpointStore, _ donor: PageDonor?
    ) throws(StoreError) -> [BlockPointer: RecordWanted] {
        guard let donor, !pointers.isEmpty else { return [:] }
        let values = try store.catalogValues(in: slot)
        let blocks = store.blocks(in: slot)
        var others: [(generation: Generation, record: CheckpointRecord)] = []
        for (id, value) in values {
            if let record = try? blocks.readRecord(value, id: id) { others.append((value.generation, record)) }
        }
        var records: [BlockPointer: RecordWanted] = [:]
        for (id, value) in values where pointers.contains(value.record) {
            guard let model = try donor.record(id) else { continue }
            let together = others.filter { $0.generation == value.generation }.map(\.record.groupID)
            records[value.record] = RecordWanted(
                pointer: value.record, generation: value.generation, model: model, others: others.map(\.record),
                groupIDs: Set(together).subtracting([0]))
        }
        return records
    }
}
