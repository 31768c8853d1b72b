// Inode numbers: what they stand for follows from the number, so that nothing is kept for those that the kernel knows.
//
// Invariant: a number stands for the same thing as long as the mount lives: checkpoints are numbered when they are first seen, no
// number is given twice, and the regions of a checkpoint don't change.

import CStoreMount
import StoreFormat
import Units

/// The number of a checkpoint in a mount, in the order in which they were first seen.
struct CheckpointNumber: Quantity {
    var rawValue: UInt64
    init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// What an inode stands for.
enum Inode: Hashable, Sendable {
    case root
    /// A checkpoint.
    case folder(CheckpointNumber)
    /// Its `checkpoint.json`.
    case description(CheckpointNumber)
    /// One of its regions, by its place in the record.
    case region(CheckpointNumber, Int)
    /// A moving name, by its own number.
    case reference(UInt64)

    /// Low bits that say what it is of a checkpoint: 0 the folder, 1 the description, 2 and more a region.
    private static let placeBits: UInt64 = 13
    private static let referenceBit = UInt64(1) << 62

    /// nil: this program has never given that number.
    init?(_ number: UInt64) {
        let (checkpoint, place) = (number >> Self.placeBits, Int(number & (1 << Self.placeBits - 1)))
        switch (checkpoint, place) {
        case _ where number & Self.referenceBit != 0: self = .reference(number & ~Self.referenceBit)
        case (0, Int(CK_ROOT_INODE)): self = .root
        case (0, _): return nil
        case (_, 0): self = .folder(CheckpointNumber(checkpoint - 1))
        case (_, 1): self = .description(CheckpointNumber(checkpoint - 1))
        default: self = .region(CheckpointNumber(checkpoint - 1), place - 2)
        }
    }

    /// The number.
    var number: UInt64 {
        func of(_ checkpoint: CheckpointNumber, _ place: UInt64) -> UInt64 { (checkpoint.rawValue + 1) << Self.placeBits | place }
        switch self {
        case .root: return UInt64(CK_ROOT_INODE)
        case .folder(let checkpoint): return of(checkpoint, 0)
        case .description(let checkpoint): return of(checkpoint, 1)
        case .region(let checkpoint, let index):
            precondition(index < CheckpointRecord.maximumRegions, "a checkpoint has at most \(CheckpointRecord.maximumRegions) regions")
            return of(checkpoint, UInt64(index) + 2)
        case .reference(let number): return number | Self.referenceBit
        }
    }
}
