// What the segments say when trees can't: older copies of nodes, records, blocks that were moved.
//
// Invariants:
// - Nothing of a generation behind the one to be repaired counts: it never came to its slots.
// - What is found is evidence, no more: whoever uses it reads the block that it leads to.
// - Memory: some 100 bytes for each checkpoint that ever was, and for each block that was moved.

import StoreFormat
import Units

/// What one pass over all segments finds.
struct TreeScan: Sendable {
    /// Which run a block may be a moved copy of.
    struct RunKey: Hashable, Sendable {
        var birth: BlockBirth
        var key: RegionKey
        var span: SpanIndex
    }

    /// What a segment shows by itself.
    struct Segment: Sendable {
        var segmentClass: SegmentClass?
        var birth = BlockBirth(UInt64(0))
        /// Behind the last sound block.
        var end = 0
        /// Pages of all runs, or 64-byte units of all blocks.
        var units: UInt64 = 0
    }

    private(set) var segments: [SegmentIndex: Segment] = [:]
    private(set) var records: [CheckpointID: [BlockPointer]] = [:]
    private(set) var names: [CheckpointID: String] = [:]
    /// Of older catalogs: the last life of each checkpoint.
    private(set) var values: [CheckpointID: CatalogValue] = [:]
    /// The generations in which each id was committed: one that was received again has several.
    private(set) var lives: [CheckpointID: Set<UInt64>] = [:]
    /// Of older lineages: every copy of a member's entry.
    private(set) var members: [CheckpointID: [(birth: BlockBirth, parent: CheckpointID?)]] = [:]
    private(set) var references: [[UInt8]: (birth: BlockBirth, id: CheckpointID)] = [:]
    /// Of older forwarding tables: the newest entry of each block.
    private(set) var moves: [ForwardingKey: (birth: BlockBirth, entry: ForwardingEntry)] = [:]
    private(set) var movedBlocks: [SalvageInventory.MovedKey: [BlockPointer]] = [:]
    private(set) var movedRuns: [RunKey: [BlockPointer]] = [:]

    private let newest: UInt64
    private let uuid: StoreUUID

    init(_ store: CheckpointStore, _ slot: Slot) {
        newest = slot.generation.rawValue
        uuid = slot.uuid
        let scan = SegmentScan(medium: store.medium, geometry: slot.geometry)
        for number in 0..<UInt64(slot.geometry.segmentCount) {
            var (found, blocks, isForeign): (Segment, [ScannedBlock], Bool) = (Segment(), [], false)
            scan.forEachBlock(in: SegmentIndex(number), table: { bytes in if !isForeign { addTable(bytes) } }) { block, bytes in
                if block.header.kind == .segmentHeader {
                    guard let header = try? SegmentHeader.decode(bytes), block.offset == .zero else { return }
                    isForeign = header.storeUUID != uuid || header.segment.rawValue != number
                    (found.segmentClass, found.birth) = (header.segmentClass, header.birth)
                }
                guard !isForeign else { return }
                found.end = block.offset.int + Int(block.header.storedLength)
                add(block, bytes, to: &found, &blocks)
            }
            if !isForeign { close(SegmentIndex(number), found, blocks) }
        }
    }

    private mutating func add(_ block: FoundBlock, _ bytes: RawSpan, to found: inout Segment, _ blocks: inout [ScannedBlock]) {
        switch block.header.kind {
        case .catalogNode where block.header.birth.rawValue <= newest: addNode(bytes, block.header.birth)
        case .run:
            found.units += UInt64((try? PageRunHeader.decode(bytes))?.pages.count ?? pagesPerRun)
            blocks.append(ScannedBlock(block, bytes))
        case .leaf, .patchLeaf, .inner, .checkpointRecord, .commitRecord:
            if block.header.kind != .commitRecord { found.units += UInt64(CommitTransaction.liveUnits(Int(block.header.storedLength))) }
            if block.header.kind == .checkpointRecord { records[CheckpointID(block.header.birth.rawValue), default: []].append(block.pointer) }
            blocks.append(ScannedBlock(block, bytes))
        default: break
        }
    }

    private mutating func close(_ segment: SegmentIndex, _ found: Segment, _ blocks: [ScannedBlock]) {
        var found = found
        for scanned in blocks {
            guard let commit = scanned.commit, commit.segment == segment else { continue }
            found.birth = commit.birth
            if let record = commit.record {
                names[CheckpointID(commit.birth.rawValue)] = commit.name
                records[CheckpointID(commit.birth.rawValue), default: []].append(record)
            }
            guard let range = scanned.moved else { continue }
            for block in blocks where range.contains(block.block.offset) && block.block.header.kind.isForwarded { addMoved(block) }
        }
        segments[segment] = found
    }

    private mutating func addMoved(_ scanned: ScannedBlock) {
        let pointer = scanned.block.pointer
        movedBlocks[SalvageInventory.MovedKey(birth: pointer.birth, checksum: pointer.checksum), default: []].append(pointer)
        if pointer.kind == .run {
            movedRuns[RunKey(birth: pointer.birth, key: scanned.regionKey, span: scanned.first), default: []].append(pointer)
        }
    }

    private mutating func addNode(_ bytes: RawSpan, _ birth: BlockBirth) {
        guard let node = try? CatalogNode.decode(bytes), node.level == 0 else { return }
        for entry in node.entries {
            guard case .leaf(let bytes) = entry.payload else { continue }
            switch node.tree {
            case .byID:
                guard let id = CatalogTree.id(ofKey: entry.key), let value = try? CatalogValue.decode(bytes) else { continue }
                lives[id, default: []].insert(value.generation.rawValue)
                if values[id].map({ $0.generation < value.generation }) ?? true { values[id] = value }
            case .lineage: addLineage(entry.key, bytes, birth)
            case .byName, .forwarding: continue
            }
        }
    }

    private mutating func addLineage(_ key: [UInt8], _ value: [UInt8], _ birth: BlockBirth) {
        switch try? LineageEntry.decode(key: key, value: value) {
        case .node(let id, let parent, _): members[id, default: []].append((birth, parent))
        case .reference(let name, let id):
            let key = CatalogTree.key(name)
            if references[key].map({ $0.birth < birth }) ?? true { references[key] = (birth, id) }
        case .edge, nil: break
        }
    }

    private mutating func addTable(_ bytes: RawSpan) {
        guard let header = try? Block.peek(bytes), header.birth.rawValue <= newest, let table = try? ForwardingTable.decode(bytes)
        else { return }
        for entry in table.entries {
            let key = ForwardingKey(segment: table.segment, offset: entry.offset, birth: entry.birth)
            if moves[key].map({ $0.birth < header.birth }) ?? true { moves[key] = (header.birth, entry) }
        }
    }
}
