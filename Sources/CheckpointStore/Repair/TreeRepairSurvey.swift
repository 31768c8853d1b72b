// What can be read of a generation's own trees: the catalogs, the lineage, forwarding, the segment table.
//
// Invariants:
// - What is lost is known by its keys: a node that can't be read takes away the keys that are below it, and no others.
// - Memory: some 200 bytes for each checkpoint, 100 for each moved block, 32 for each segment.

import StoreFormat
import Units

/// Keys that stood in nodes that can't be read.
struct LostKeys: Sendable {
    private(set) var ranges: [(low: [UInt8], high: [UInt8]?, birth: BlockBirth)] = []

    var isEmpty: Bool { ranges.isEmpty }

    mutating func add(from low: [UInt8], to high: [UInt8]?, birth: BlockBirth) { ranges.append((low, high, birth)) }

    func contains(_ key: [UInt8]) -> Bool { birth(of: key) != nil }

    /// Whether some key that begins so may have been lost.
    func mayHold(keysWith prefix: [UInt8]) -> Bool {
        let last = prefix + [UInt8](repeating: 0xFF, count: LineageKey.maximumLength - prefix.count)
        return ranges.contains { range in
            !last.lexicographicallyPrecedes(range.low) && (range.high.map { prefix.lexicographicallyPrecedes($0) } ?? true)
        }
    }

    /// When the node was written that may have held the key; nil when none of the lost ones can have held it.
    func birth(of key: [UInt8]) -> BlockBirth? {
        ranges.first { range in
            !key.lexicographicallyPrecedes(range.low) && (range.high.map { key.lexicographicallyPrecedes($0) } ?? true)
        }?.birth
    }
}

/// Everything that is left of the trees of `slot`.
struct TreeSurvey {
    let slot: Slot
    private(set) var values: [CheckpointID: CatalogValue] = [:]
    /// By their bytes: names that Swift takes for equal may differ.
    private(set) var names: [[UInt8]: CheckpointID] = [:]
    private(set) var members: [CheckpointID: LineageTree.Node] = [:]
    /// By child.
    private(set) var edges: [CheckpointID: CheckpointID] = [:]
    private(set) var references: [[UInt8]: CheckpointID] = [:]
    private(set) var moves: [ForwardingKey: ForwardingEntry] = [:]
    private(set) var entries: [SegmentIndex: SegmentEntry] = [:]
    /// Segments whose entries can't be read.
    private(set) var lostSegments: [Range<UInt64>] = []
    private(set) var lost: [CatalogTree: LostKeys] = [:]
    /// Sound blocks of class 3, those of the segment table left out.
    private(set) var sound: [CatalogTree: [BlockPointer]] = [:]
    /// How many nodes of each tree can't be read; of the segment table under nil.
    private(set) var damaged: [CatalogTree?: Int] = [:]

    /// - Throws: what is no damage.
    init(_ store: CheckpointStore, _ slot: Slot) throws(StoreError) {
        self.slot = slot
        try walk(slot.catalogByID, .byID, store) { survey, key, bytes in
            if let id = CatalogTree.id(ofKey: key), let value = try? CatalogValue.decode(bytes) { survey.values[id] = value }
        }
        try walk(slot.catalogByName, .byName, store) { survey, key, bytes in survey.names[key] = CatalogTree.id(ofValue: bytes) }
        try walk(slot.lineage, .lineage, store) { survey, key, bytes in
            guard let entry = try? LineageEntry.decode(key: key, value: bytes) else { return }
            switch entry {
            case .node(let id, let parent, let state): survey.members[id] = LineageTree.Node(parent: parent, state: state)
            case .edge(let parent, let child): survey.edges[child] = parent
            case .reference(let name, let id): survey.references[CatalogTree.key(name)] = id
            }
        }
        try forwarding(store)
        if let root = slot.segmentTable { try table(root, level: slot.geometry.tableDepth, first: 0, store) }
    }

    var isWhole: Bool { damaged.isEmpty }
    var isTableWhole: Bool { lostSegments.isEmpty }
    func lostKeys(_ tree: CatalogTree) -> LostKeys { lost[tree] ?? LostKeys() }

    /// The entry of a segment; nil when it can't be read.
    func entry(_ segment: SegmentIndex) -> SegmentEntry? {
        if let known = entries[segment] { return known }
        return lostSegments.contains { $0.contains(segment.rawValue) } ? nil : .neverUsed
    }

    private mutating func walk(
        _ root: BlockPointer?, _ tree: CatalogTree, _ store: CheckpointStore, _ body: (inout TreeSurvey, [UInt8], [UInt8]) -> Void
    ) throws(StoreError) {
        var copy = self
        var (sound, lost, count): ([BlockPointer], LostKeys, Int) = ([], LostKeys(), 0)
        try store.forEachInCatalog(
            root, tree: tree, visiting: { sound.append($0) },
            skipping: { (error, pointer, low, high) throws(StoreError) in
                guard error.isDamage else { throw error }
                lost.add(from: low, to: high, birth: pointer.birth)
                count += 1
            }
        ) { key, value in body(&copy, key, value) }
        self = copy
        self.sound[tree] = sound
        if count > 0 { (self.lost[tree], damaged[tree]) = (lost, count) }
    }

    /// The tables below the forwarding tree. A table that can't be read takes away what lies before the next one of its segment.
    private mutating func forwarding(_ store: CheckpointStore) throws(StoreError) {
        var named: [(key: [UInt8], table: ForwardingTableRef)] = []
        try walk(slot.forwarding, .forwarding, store) { _, key, bytes in
            guard let place = ForwardingKey(key), let pointer = unsafe try? BlockPointer.decode(bytes.span.bytes) else { return }
            named.append((key, ForwardingTableRef(key: place, pointer: pointer)))
        }
        for (index, one) in named.enumerated() {
            do throws(StoreError) {
                let table = try store.readForwardingTable(one.table)
                for entry in table.entries {
                    moves[ForwardingKey(segment: table.segment, offset: entry.offset, birth: entry.birth)] = entry
                }
                sound[.forwarding, default: []].append(one.table.pointer)
            } catch {
                guard error.isDamage else { throw error }
                let next = index + 1 < named.count ? named[index + 1].key : nil
                lost[.forwarding, default: LostKeys()].add(from: one.key, to: next, birth: one.table.pointer.birth)
                damaged[.forwarding, default: 0] += 1
            }
        }
    }

    private mutating func table(_ pointer: BlockPointer, level: UInt8, first: UInt64, _ store: CheckpointStore) throws(StoreError) {
        do throws(StoreError) {
            guard level > 0 else {
                let leaf = try store.readTableLeaf(pointer, first: SegmentIndex(first))
                for (index, entry) in leaf.entries.enumerated() { entries[SegmentIndex(first + UInt64(index))] = entry }
                return
            }
            let node = try store.readTableInner(pointer, level: level, containing: SegmentIndex(first))
            for (index, child) in node.children.enumerated() {
                guard let child else { continue }
                try table(child, level: level - 1, first: first + UInt64(index) * SegmentTable.segmentsPerNode(level: level - 1), store)
            }
        } catch {
            guard error.isDamage else { throw error }
            damaged[nil, default: 0] += 1
            let end = min(first + SegmentTable.segmentsPerNode(level: level), UInt64(slot.geometry.segmentCount))
            if first < end { lostSegments.append(first..<end) }
        }
    }
}
