// What a scan of all segments finds: checkpoints by their records and commit records, blocks that were moved, and, for checkpoints
// whose records are gone, what is left of their index and runs.
//
// Invariants:
// - Blocks of segments whose sound header is another store's are left out.
// - Memory: about 100 bytes for each checkpoint, 100 for each block that was moved, 100 for each index block and 40 for each run of a
//   checkpoint without a record. Never pages.

import Media
import StoreFormat
import Units

/// Everything that was found. Filled by one thread, then read by many.
struct SalvageInventory: Sendable {
    /// A commit record of a checkpoint.
    struct Commit: Sendable {
        var record: BlockPointer
        var name: String
        /// That of its blocks; the id, but for checkpoints that were received.
        var birth: BlockBirth
    }

    /// A node of a page table without a checkpoint record.
    struct LooseNode: Sendable {
        var pointer: BlockPointer
        var first: SpanIndex
        var level: UInt8
    }

    /// A run without a checkpoint record.
    struct LooseRun: Sendable {
        var pointer: BlockPointer
        var span: SpanIndex
    }

    /// What one checkpoint without a record wrote of one region.
    struct LooseRegion: Sendable {
        var nodes: [LooseNode] = []
        var runs: [LooseRun] = []
    }

    struct MovedKey: Hashable {
        var birth: BlockBirth
        var checksum: Hash128
    }

    struct ForwardKey: Hashable {
        var segment: SegmentIndex
        var offset: SegmentOffset
        var birth: BlockBirth
    }

    var scannedSegments = 0
    var foreignSegments = 0
    var unreadableBytes = ByteCount.zero
    /// The newest generation that a segment header mentions.
    var newestGeneration = Generation(UInt64(0))
    var commits: [CheckpointID: Commit] = [:]
    var records: [CheckpointID: BlockPointer] = [:]
    /// Births of blocks that a commit record stands behind.
    var committedBirths: Set<BlockBirth> = []
    /// Runs of each birth: of checkpoints, and of what was abandoned.
    var runCounts: [BlockBirth: Int] = [:]
    /// Where whole blocks have been moved.
    var moved: [MovedKey: BlockPointer] = [:]
    /// What forwarding tables say, the newest table's entry first.
    var forwarded: [ForwardKey: [(generation: Generation, block: ForwardedBlock)]] = [:]
    var loose: [BlockBirth: [RegionKey: LooseRegion]] = [:]

    /// The birth of what a checkpoint wrote itself, in its last part where it came in several.
    func birth(of id: CheckpointID) -> BlockBirth { commits[id]?.birth ?? BlockBirth(id) }
}

/// Fills an inventory. Confined to one thread.
struct SalvageScanner {
    let medium: any Medium
    let layout: SalvageLayout
    var progress: (ByteCount) -> Void = { _ in }

    /// The first pass: everything but loose blocks.
    func survey() -> SalvageInventory {
        var found = SalvageInventory()
        found.unreadableBytes = scan { segment, blocks, tables in
            found.scannedSegments += 1
            for (generation, entries) in tables { found.add(generation, entries) }
            found.add(segment, blocks)
        } onHeader: { header in
            found.newestGeneration = max(found.newestGeneration, header.baseGeneration)
        } onForeign: {
            found.foreignSegments += 1
        }
        return found
    }

    /// The second pass: the index blocks and runs of `births`.
    func addLooseBlocks(of births: Set<BlockBirth>, to found: inout SalvageInventory) {
        _ = scan { _, blocks, _ in
            for block in blocks where births.contains(block.block.header.birth) { found.addLoose(block) }
        } onHeader: { _ in
        } onForeign: {
        }
    }

    private typealias Tables = [(Generation, [ForwardedBlock])]

    private func scan(
        _ body: (SegmentIndex, [ScannedBlock], Tables) -> Void, onHeader: (SegmentHeader) -> Void, onForeign: () -> Void
    ) -> ByteCount {
        let scan = SegmentScan(medium: medium, geometry: layout.geometry)
        for number in 0..<UInt64(layout.geometry.segmentCount) {
            let segment = SegmentIndex(number)
            let start = layout.geometry.offset(of: segment)
            guard start.rawValue < medium.size.rawValue else { break }
            progress(ByteCount(start.rawValue))
            if let header = SalvageLayout.header(medium, at: start) {
                guard header.storeUUID == layout.uuid, header.segment == segment else {
                    onForeign()
                    continue
                }
                onHeader(header)
            }
            var (blocks, tables): ([ScannedBlock], Tables) = ([], [])
            scan.forEachBlock(in: segment) { bytes in
                if let table = CompactionMarks.table(bytes) { tables.append(table) }
            } _: { block, bytes in
                blocks.append(ScannedBlock(block, bytes))
            }
            if !blocks.isEmpty || !tables.isEmpty { body(segment, blocks, tables) }
        }
        return scan.unreadableBytes
    }
}

/// A block with what its place in a tree and its neighbours need.
struct ScannedBlock {
    var block: FoundBlock
    var regionKey = RegionKey(UInt64(0))
    var first = SpanIndex(UInt64(0))
    var level: UInt8 = 0
    var commit: CommitRecord?
    /// Compaction's commit record: the blocks before it that were moved here.
    var moved: Range<SegmentOffset>?

    init(_ block: FoundBlock, _ bytes: RawSpan) {
        self.block = block
        switch block.header.kind {
        case .run:
            if let run = try? PageRunHeader.decode(bytes) { (regionKey, first) = (run.regionKey, run.span) }
        case .leaf:
            if let leaf = try? Leaf.decode(bytes) { (regionKey, first) = (leaf.regionKey, leaf.span) }
        case .patchLeaf:
            if let leaf = try? PatchLeaf.decode(bytes) { (regionKey, first) = (leaf.regionKey, leaf.span) }
        case .inner:
            if let node = try? InnerNode.decode(bytes) {
                (regionKey, first, level) = (node.regionKey, SpanIndex(of: node.firstPage), node.level)
            }
        case .commitRecord:
            commit = try? CommitRecord.decode(bytes)
            moved = CompactionMarks.movedBlocks(commit, in: block.segment)
        default: break
        }
    }
}

extension SalvageInventory {
    fileprivate mutating func add(_ segment: SegmentIndex, _ blocks: [ScannedBlock]) {
        for scanned in blocks {
            let block = scanned.block
            switch block.header.kind {
            case .run: runCounts[block.header.birth, default: 0] += 1
            case .checkpointRecord: records[CheckpointID(block.header.birth.rawValue)] = block.pointer
            case .commitRecord:
                if let commit = scanned.commit, commit.segment == segment, commit.endOffset <= block.offset, let record = commit.record {
                    commits[CheckpointID(record.birth.rawValue)] = Commit(record: record, name: commit.name, birth: commit.birth)
                    committedBirths.insert(commit.birth)
                }
                if let range = scanned.moved { addMoved(blocks, range) }
            default: break
            }
        }
    }

    private mutating func addMoved(_ blocks: [ScannedBlock], _ range: Range<SegmentOffset>) {
        for scanned in blocks where range.contains(scanned.block.offset) && scanned.block.header.kind.isPointedTo {
            let pointer = scanned.block.pointer
            moved[MovedKey(birth: pointer.birth, checksum: pointer.checksum)] = pointer
        }
    }

    fileprivate mutating func add(_ generation: Generation, _ entries: [ForwardedBlock]) {
        for entry in entries {
            let key = ForwardKey(segment: entry.segment, offset: entry.offset, birth: entry.birth)
            forwarded[key, default: []].append((generation, entry))
            forwarded[key]?.sort { $0.generation > $1.generation }
        }
    }

    fileprivate mutating func addLoose(_ scanned: ScannedBlock) {
        let block = scanned.block
        switch block.header.kind {
        case .run:
            loose[block.header.birth, default: [:]][scanned.regionKey, default: LooseRegion()].runs.append(
                LooseRun(pointer: block.pointer, span: scanned.first))
        case .leaf, .patchLeaf, .inner:
            loose[block.header.birth, default: [:]][scanned.regionKey, default: LooseRegion()].nodes.append(
                LooseNode(pointer: block.pointer, first: scanned.first, level: scanned.level))
        default: break
        }
    }
}
