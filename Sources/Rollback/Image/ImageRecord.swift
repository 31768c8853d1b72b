// The record that makes a checkpoint on a medium the newest one. Formats/ROLLBACK.md 3.
//
// Invariant: a record that decodes is whole and speaks of sizes that an image can have.

import PageCodec
import Units

/// One committed checkpoint: what it consists of, and the checksums of that.
struct ImageRecord: Hashable {
    /// Random, the same for all records of one image.
    var image: Hash128
    var epoch: RollbackEpoch
    var geometry: ImageGeometry
    var stateLength: ByteCount
    var stateHash: Hash128
    var tableHash: Hash128
    /// What people know the memory by.
    var name: String

    static let magic: UInt64 = 0x314C_4C4F_524B_43  // "CKROLL1" and a zero byte
    static let version: UInt32 = 1
    static let longestName = 255
    private static let checksumOffset = ImageGeometry.recordBytes - ImageGeometry.hashBytes
    private static let nameOffset = 112

    func encoded() -> AlignedBytes {
        let bytes = AlignedBytes(count: ImageGeometry.recordBytes)
        bytes.put(Self.magic, at: 0)
        bytes.put(Self.version, at: 8)
        bytes.put(image, at: 16)
        bytes.put(epoch.rawValue, at: 32)
        bytes.put(geometry.byteLength.rawValue, at: 40)
        bytes.put(geometry.stateCapacity.rawValue, at: 48)
        bytes.put(stateLength.rawValue, at: 56)
        bytes.put(stateHash, at: 64)
        bytes.put(tableHash, at: 80)
        let name = [UInt8](name.utf8.prefix(Self.longestName))
        bytes.put(UInt16(name.count), at: 96)
        bytes.put(name, at: Self.nameOffset)
        bytes.put(bytes.hash(of: 0..<Self.checksumOffset), at: Self.checksumOffset)
        return bytes
    }

    /// What a slot holds.
    enum Slot {
        case record(ImageRecord)
        /// Nothing but zeros.
        case empty
        /// A record of a version that this program does not know.
        case unknownVersion(UInt32)
        /// A record that is damaged or was never written whole.
        case broken
        /// Something else.
        case foreign
    }

    static func decode(_ bytes: AlignedBytes) -> Slot {
        if bytes.isZero { return .empty }
        guard bytes.u64(0) == magic else { return .foreign }
        guard bytes.hash(of: 0..<checksumOffset) == bytes.hash(checksumOffset) else { return .broken }
        guard bytes.u32(8) == version else { return .unknownVersion(bytes.u32(8)) }
        let nameLength = Int(bytes.u16(96))
        guard let geometry = ImageGeometry(byteLength: ByteCount(bytes.u64(40)), stateCapacity: ByteCount(bytes.u64(48))),
            bytes.u64(56) <= geometry.stateCapacity.rawValue, nameLength <= longestName, bytes.u64(32) != 0
        else { return .broken }
        return .record(
            ImageRecord(
                image: bytes.hash(16), epoch: RollbackEpoch(bytes.u64(32)), geometry: geometry, stateLength: ByteCount(bytes.u64(56)),
                stateHash: bytes.hash(64), tableHash: bytes.hash(80),
                name: String(decoding: bytes.copy(nameOffset..<nameOffset + nameLength), as: UTF8.self)))
    }
}
