// Headers and map pages of copy-on-write files: values to bytes and back, as `Formats/COW.md` says.
//
// Invariant: what decodes has the checksum that its writer gave it, and fields that can be.

import PageCodec
import Units

/// What a copy-on-write file is in the middle of.
public enum CowState: UInt32, Sendable {
    /// It takes a machine's writes.
    case open = 0
    /// Its groups are being written into the parent: some may be there already.
    case merging = 1
    /// All of it is in the parent, durably: the file is of no use any more.
    case merged = 2
}

/// A header: one complete description of the file's state.
struct CowHeader: Sendable, Equatable {
    static let magic: UInt64 = 0x314B_5349_4457_4F43  // "COWDISK1"
    static let version: UInt32 = 1

    var state: CowState
    var generation: Generation
    var id: OverlayID
    /// The copy-on-write file below this one; nil: the disk's image.
    var parent: OverlayID?
    var geometry: DiskGeometry
    var chunkCount: Int
    /// The hash of all map pages' checksums, in the order of their chunks.
    var mapHash: Hash128

    var encoded: [UInt8] {
        var page = [UInt8](repeating: 0, count: CowLayout.headerSize)
        page.put(Self.magic, at: 0)
        page.put(UInt64(Self.version) | UInt64(state.rawValue) << 32, at: 24)
        page.put(generation.rawValue, at: 32)
        page.put(id.rawValue, at: 40)
        page.put(parent?.rawValue ?? 0, at: 48)
        page.put(geometry.diskLength.rawValue, at: 56)
        page.put(geometry.groupSize.rawValue | UInt64(CowLayout.blockSize) << 32, at: 64)
        page.put(UInt64(chunkCount), at: 72)
        page.put(mapHash, at: 80)
        page.put(unsafe page.withUnsafeBytes { unsafe hash128(UnsafeRawBufferPointer(rebasing: $0[24...])) }, at: 8)
        return page
    }

    /// What became of decoding.
    enum Decoded {
        case header(CowHeader)
        /// Sound, but of a version that this program does not know.
        case otherVersion(UInt32)
        /// Never written, torn or damaged.
        case invalid
    }

    static func decode(_ page: [UInt8]) -> Decoded {
        guard page.count == CowLayout.headerSize, page.u64(0) == magic,
            unsafe page.withUnsafeBytes({ unsafe hash128(UnsafeRawBufferPointer(rebasing: $0[24...])) }) == page.hash(8)
        else { return .invalid }
        let version = UInt32(truncatingIfNeeded: page.u64(24))
        guard version == Self.version else { return .otherVersion(version) }
        guard let state = CowState(rawValue: UInt32(page.u64(24) >> 32)), page.u64(40) != 0, page.u64(64) >> 32 == UInt64(CowLayout.blockSize),
            let geometry = try? DiskGeometry(diskLength: ByteCount(page.u64(56)), groupSize: ByteCount(page.u64(64) & 0xFFFF_FFFF)),
            page.u64(32) < 1 << 62, page.u64(72) <= 1 << 48
        else { return .invalid }
        return .header(
            CowHeader(
                state: state, generation: Generation(page.u64(32)), id: OverlayID(page.u64(40)),
                parent: page.u64(48) == 0 ? nil : OverlayID(page.u64(48)), geometry: geometry, chunkCount: Int(page.u64(72)),
                mapHash: page.hash(80)))
    }
}

/// What a slot holds.
struct CowSlot: Sendable, Equatable {
    /// Nil when the slot is free; `hashes` is empty then.
    var group: BlockGroup?
    /// One for each block of the group.
    var hashes: [Hash128] = []
}

/// One map page: the slots of a chunk.
struct CowMapPage: Sendable {
    static let magic: UInt64 = 0x4D44_4B43  // "CKDM"
    static let noGroup = UInt64.max

    var chunk: ChunkIndex
    var generation: Generation
    var slots: [CowSlot]

    func encoded(_ layout: CowLayout, id: OverlayID) -> (bytes: [UInt8], checksum: Hash128) {
        var page = [UInt8](repeating: 0, count: CowLayout.mapPageSize)
        page.put(Self.magic, at: 16)
        page.put(chunk.rawValue, at: 24)
        page.put(generation.rawValue, at: 32)
        page.put(id.rawValue, at: 40)
        for (number, slot) in slots.enumerated() {
            let start = CowLayout.mapHeaderSize + number * layout.entrySize
            page.put(slot.group?.rawValue ?? Self.noGroup, at: start)
            for (block, hash) in slot.hashes.enumerated() { page.put(hash, at: start + 8 + 16 * block) }
        }
        let checksum = unsafe page.withUnsafeBytes { unsafe hash128(UnsafeRawBufferPointer(rebasing: $0[16...])) }
        page.put(checksum, at: 0)
        return (page, checksum)
    }

    /// Nil when the page was never written, is torn, damaged, or another's.
    static func decode(_ page: [UInt8], _ layout: CowLayout, id: OverlayID, chunk: ChunkIndex) -> (page: CowMapPage, checksum: Hash128)? {
        guard page.count == CowLayout.mapPageSize, page.u64(16) == magic, page.u64(24) == chunk.rawValue, page.u64(40) == id.rawValue,
            page.u64(32) < 1 << 62,
            unsafe page.withUnsafeBytes({ unsafe hash128(UnsafeRawBufferPointer(rebasing: $0[16...])) }) == page.hash(0)
        else { return nil }
        var slots: [CowSlot] = []
        for number in 0..<layout.slotsPerChunk {
            let start = CowLayout.mapHeaderSize + number * layout.entrySize
            let group = BlockGroup(page.u64(start))
            if group.rawValue == noGroup {
                slots.append(CowSlot())
            } else {
                guard group.rawValue < UInt64(layout.geometry.groupCount) else { return nil }
                slots.append(CowSlot(group: group, hashes: (0..<layout.blockCount(of: group)).map { page.hash(start + 8 + 16 * $0) }))
            }
        }
        return (CowMapPage(chunk: chunk, generation: Generation(page.u64(32)), slots: slots), page.hash(0))
    }
}

/// Fields of a page in memory, little-endian.
extension [UInt8] {
    func u64(_ offset: Int) -> UInt64 {
        (0..<8).reduce(0) { $0 | UInt64(self[offset + $1]) << UInt64(8 * $1) }
    }

    func hash(_ offset: Int) -> Hash128 { Hash128(low: u64(offset), high: u64(offset + 8)) }

    mutating func put(_ value: UInt64, at offset: Int) {
        for byte in 0..<8 { self[offset + byte] = UInt8(truncatingIfNeeded: value >> UInt64(8 * byte)) }
    }

    mutating func put(_ hash: Hash128, at offset: Int) {
        put(hash.low, at: offset)
        put(hash.high, at: offset + 8)
    }
}
