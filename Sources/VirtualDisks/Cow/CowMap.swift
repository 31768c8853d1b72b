// Which slot holds which group, and which slots may be written.
//
// Invariants:
// - A slot that the durable map names is never written: what it holds can be found again after a crash. It becomes free when a map that
//   does not name it is durable.
// - Slots that no durable map names yet (*fresh* ones) are written in place.

import PageCodec
import Units

struct CowMap: Sendable {
    let layout: CowLayout
    private(set) var slots: [CowSlot] = []
    private(set) var chunks: [Chunk] = []
    private var slotOfGroup: [BlockGroup: SlotIndex] = [:]
    /// Hold a group, but no durable map says so.
    private var fresh: Set<SlotIndex> = []
    private var free: [SlotIndex] = []
    /// Hold nothing any more, but the durable map still names them.
    private var retired: [SlotIndex] = []
    private var changed: Set<ChunkIndex> = []

    /// What is known of the durable map page of a chunk.
    struct Chunk: Sendable {
        /// Which of its two places holds the page that counts; nil: none does yet.
        var twin: Int?
        var checksum = Hash128.zero
    }

    init(_ layout: CowLayout) { self.layout = layout }

    /// Takes over a map page that was read. Pages come in the order of their chunks.
    /// - Returns: false when it contradicts those before it.
    mutating func load(_ page: CowMapPage, checksum: Hash128, twin: Int) -> Bool {
        chunks.append(Chunk(twin: twin, checksum: checksum))
        for slot in page.slots {
            let index = SlotIndex(slots.count)
            slots.append(slot)
            guard let group = slot.group else {
                free.append(index)
                continue
            }
            guard slotOfGroup.updateValue(index, forKey: group) == nil else { return false }
        }
        return true
    }

    /// The next flush writes a chunk's page, changed or not.
    mutating func rewrite(_ chunk: ChunkIndex) { changed.insert(chunk) }

    var groups: [BlockGroup] { slotOfGroup.keys.sorted() }
    var groupCount: Int { slotOfGroup.count }
    var isChanged: Bool { !changed.isEmpty }
    func slot(of group: BlockGroup) -> SlotIndex? { slotOfGroup[group] }
    func isFresh(_ slot: SlotIndex) -> Bool { fresh.contains(slot) }
    func hashes(of slot: SlotIndex) -> [Hash128] { slots[slot.int].hashes }

    /// A slot to write a group's content into, which nobody else gets until it is assigned or given back; nil when another chunk is needed.
    mutating func take() -> SlotIndex? { free.popLast() }

    /// The chunk that `addChunk` would add.
    var nextChunk: ChunkIndex { ChunkIndex(chunks.count) }

    mutating func addChunk() {
        let chunk = nextChunk
        chunks.append(Chunk())
        changed.insert(chunk)
        slots.append(contentsOf: repeatElement(CowSlot(), count: layout.slotsPerChunk))
        free += layout.slots(of: chunk).reversed().map { SlotIndex($0) }
    }

    mutating func giveBack(_ slot: SlotIndex) { free.append(slot) }

    /// The group's content is in `slot` from now on.
    mutating func assign(_ group: BlockGroup, to slot: SlotIndex, _ hashes: [Hash128]) {
        if let old = slotOfGroup.updateValue(slot, forKey: group) {
            slots[old.int] = CowSlot()
            changed.insert(layout.chunk(of: old))
            retired.append(old)
        }
        slots[slot.int] = CowSlot(group: group, hashes: hashes)
        fresh.insert(slot)
        changed.insert(layout.chunk(of: slot))
    }

    /// The content of some blocks of a fresh slot has changed in place.
    mutating func setHashes(_ slot: SlotIndex, from block: Int, _ hashes: [Hash128]) {
        slots[slot.int].hashes.replaceSubrange(block..<block + hashes.count, with: hashes)
        changed.insert(layout.chunk(of: slot))
    }

    // MARK: Flushing

    /// A state of the map on its way to the medium.
    struct Snapshot: Sendable {
        var pages: [(chunk: ChunkIndex, twin: Int, bytes: [UInt8], checksum: Hash128)] = []
        var mapHash = Hash128.zero
        var chunkCount = 0
        fileprivate var freed: [SlotIndex] = []
    }

    /// Freezes the present state: from now on its slots are not written any more.
    mutating func snapshot(_ generation: Generation, id: OverlayID) -> Snapshot {
        var result = Snapshot(chunkCount: chunks.count, freed: retired)
        var checksums = chunks.map(\.checksum)
        for chunk in changed.sorted() {
            let page = CowMapPage(chunk: chunk, generation: generation, slots: Array(slots[layout.slots(of: chunk)]))
            let (bytes, checksum) = page.encoded(layout, id: id)
            checksums[chunk.int] = checksum
            result.pages.append((chunk, chunks[chunk.int].twin == 0 ? 1 : 0, bytes, checksum))
        }
        result.mapHash = Self.hash(of: checksums)
        retired = []
        fresh = []
        changed = []
        return result
    }

    /// The snapshot is durable.
    mutating func settle(_ snapshot: Snapshot) {
        for page in snapshot.pages { chunks[page.chunk.int] = Chunk(twin: page.twin, checksum: page.checksum) }
        free.append(contentsOf: snapshot.freed)
    }

    var mapHash: Hash128 { Self.hash(of: chunks.map(\.checksum)) }

    private static func hash(of checksums: [Hash128]) -> Hash128 {
        var bytes = [UInt8](repeating: 0, count: 16 * checksums.count)
        for (index, checksum) in checksums.enumerated() { bytes.put(checksum, at: 16 * index) }
        return unsafe bytes.withUnsafeBytes { unsafe hash128($0) }
    }
}
