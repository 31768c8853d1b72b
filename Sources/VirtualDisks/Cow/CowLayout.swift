// Where things lie in a copy-on-write file: `Formats/COW.md` in numbers.
//
// Invariant: everything follows from the geometry; nothing here does I/O.

import Units

/// The index of a slot: room for the content of one block group.
struct SlotIndex: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// The index of a chunk: a map page, twice, and the slots that it describes.
struct ChunkIndex: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// The places of one file.
struct CowLayout: Sendable {
    /// What has a checksum of its own: a read verifies the blocks that it touches.
    static let blockSize = 4096
    static let mapPageSize = 4096
    static let headerSize = 4096
    /// Two pairs of headers.
    static let headerAreaSize: UInt64 = 4 * 4096
    static let mapHeaderSize = 48

    let geometry: DiskGeometry
    let blocksPerGroup: Int
    /// Bytes of one slot's entry in a map page: the group, and a hash for each block.
    let entrySize: Int
    let slotsPerChunk: Int
    let chunkSize: UInt64

    init(_ geometry: DiskGeometry) {
        self.geometry = geometry
        blocksPerGroup = geometry.groupSize.int / Self.blockSize
        entrySize = 8 + 16 * blocksPerGroup
        slotsPerChunk = (Self.mapPageSize - Self.mapHeaderSize) / entrySize
        chunkSize = UInt64(2 * Self.mapPageSize) + UInt64(slotsPerChunk) * geometry.groupSize.rawValue
    }

    /// `pair` and `copy` are 0 or 1.
    static func header(pair: Int, copy: Int) -> MediumOffset { MediumOffset((2 * copy + pair) * headerSize) }

    /// `twin` is 0 or 1.
    func mapPage(_ chunk: ChunkIndex, twin: Int) -> MediumOffset {
        MediumOffset(Self.headerAreaSize + chunk.rawValue * chunkSize + UInt64(twin * Self.mapPageSize))
    }

    func chunk(of slot: SlotIndex) -> ChunkIndex { ChunkIndex(slot.rawValue / UInt64(slotsPerChunk)) }
    /// The slots of a chunk, ascending.
    func slots(of chunk: ChunkIndex) -> Range<Int> { chunk.int * slotsPerChunk..<(chunk.int + 1) * slotsPerChunk }

    func start(of slot: SlotIndex) -> MediumOffset {
        mapPage(chunk(of: slot), twin: 2) + ByteCount(slot.rawValue % UInt64(slotsPerChunk) * geometry.groupSize.rawValue)
    }

    /// The blocks of a group that `bytes`, counted from the group's start, touch.
    func blocks(touching bytes: Range<Int>) -> Range<Int> {
        bytes.lowerBound / Self.blockSize..<(bytes.upperBound + Self.blockSize - 1) / Self.blockSize
    }

    /// How many blocks a group has: fewer at the disk's end, where the last may be partly filled.
    func blockCount(of group: BlockGroup) -> Int {
        (geometry.bytes(of: group).byteCount.int + Self.blockSize - 1) / Self.blockSize
    }
}
