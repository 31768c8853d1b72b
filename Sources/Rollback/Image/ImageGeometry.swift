// Where things are on a medium that holds a rollback image. Formats/ROLLBACK.md 1 and 2.
//
// Invariant: every place is a multiple of 4096 bytes, and none overlaps another.

import CheckpointCore
import Units

/// The sizes that decide where everything is.
struct ImageGeometry: Hashable {
    /// Of the memory.
    let byteLength: ByteCount
    /// A multiple of 4096.
    let stateCapacity: ByteCount

    static let recordSlotCount = 4
    static let recordBytes = 4096
    static let hashBytes = 16
    private static let longestMemory: UInt64 = 1 << 47
    private static let longestState: UInt64 = 1 << 30

    /// Nil for sizes that no image has.
    init?(byteLength: ByteCount, stateCapacity: ByteCount) {
        guard byteLength > .zero, byteLength.rawValue <= Self.longestMemory, byteLength.rawValue % UInt64(pageSize) == 0,
            stateCapacity.rawValue <= Self.longestState, stateCapacity.rawValue % UInt64(pageSize) == 0
        else { return nil }
        self.byteLength = byteLength
        self.stateCapacity = stateCapacity
    }

    /// The geometry of a new image. A state capacity that is no multiple of 4096 is rounded up.
    init(of byteLength: ByteCount, stateCapacity: ByteCount, place: String) throws(EngineError) {
        guard stateCapacity.rawValue <= Self.longestState,
            let geometry = ImageGeometry(byteLength: byteLength, stateCapacity: stateCapacity.roundedUp(to: UInt64(pageSize)))
        else {
            throw EngineError(
                .invalidInput, "\(stateCapacity) bytes are too many for device state", remedy: "Give at most \(Self.longestState).", place: place)
        }
        self = geometry
    }

    var pageCount: PageCount { PageCount(covering: byteLength) }
    /// The hashes of all pages, then one bit for each, filled up with zeros.
    var tableBytes: ByteCount {
        (ByteCount(pageCount.int * Self.hashBytes) + ByteCount((pageCount.int + 7) / 8)).roundedUp(to: UInt64(pageSize))
    }
    private var areaBytes: ByteCount { stateCapacity + tableBytes }
    var requiredSize: ByteCount { ByteCount(Self.recordSlotCount * Self.recordBytes) + areaBytes + areaBytes + byteLength + byteLength }

    /// Where the record of an epoch stands, both times.
    static func recordOffsets(of epoch: RollbackEpoch) -> [MediumOffset] {
        let parity = Int(epoch.rawValue % 2)
        return [MediumOffset(parity * recordBytes), MediumOffset((parity + 2) * recordBytes)]
    }
    func stateOffset(of epoch: RollbackEpoch) -> MediumOffset {
        MediumOffset(Self.recordSlotCount * Self.recordBytes) + (epoch.rawValue % 2 == 0 ? .zero : areaBytes)
    }
    func tableOffset(of epoch: RollbackEpoch) -> MediumOffset { stateOffset(of: epoch) + stateCapacity }
    func pageOffset(_ page: PageIndex, location: UInt8) -> MediumOffset {
        MediumOffset(Self.recordSlotCount * Self.recordBytes) + areaBytes + areaBytes + (location == 0 ? .zero : byteLength)
            + ByteCount(page.int * pageSize)
    }
}

/// The number of a checkpoint in an image or a backup: each has that of the one before it plus one, the first has 1.
public struct RollbackEpoch: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// No checkpoint yet.
    public static let none = RollbackEpoch(UInt64(0))
    public var next: RollbackEpoch { RollbackEpoch(rawValue + 1) }
}
