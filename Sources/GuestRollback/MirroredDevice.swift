// Which devices stand behind one device of a guest, and which of them still work.
//
// Invariants:
// - Each write goes to every half that works, and is done when all that still work have it: any of them has all data that the guest was told
//   is written, so that it can take over alone at any moment.
// - A half that has failed is out for good: what it still writes, or answers later, harms nobody. That is why an alternate is another device, never
//   another path to the same one: a write that a dead path lets go late would overwrite newer ones.

import CheckpointCore
import Units

/// A device of a guest and its alternate.
public struct MirroredDevice: Sendable {
    /// The halves, one or two, in the order in which they are read from.
    public let halves: [any GuestDevice]

    /// - Parameter alternate: takes over when the device fails. At the beginning it has the same content; the caller sees to that.
    /// - Throws: `.mismatch` when the alternate is shorter.
    public init(_ device: any GuestDevice, alternate: (any GuestDevice)? = nil) throws(EngineError) {
        if let alternate, alternate.byteLength < device.byteLength {
            throw EngineError(
                .mismatch, "it is shorter than \(device.name)", remedy: "Use an alternate of at least \(device.byteLength) bytes.",
                place: alternate.name)
        }
        halves = [device] + (alternate.map { [$0] } ?? [])
    }

    var name: String { halves[0].name }
    var byteLength: ByteCount { halves[0].byteLength }
    /// A multiple of every half's block: they are powers of two.
    var blockLength: ByteCount { halves.map(\.blockLength).max()! }
}

/// One half of one of a guest's devices.
struct HalfIndex: Hashable {
    var device: DeviceIndex
    var half: Int
}
