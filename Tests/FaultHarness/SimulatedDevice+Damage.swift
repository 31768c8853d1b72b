// Damage at rest: what a medium does to bytes that nobody is writing.
//
// Invariant: damage changes the visible and the durable content alike and is an event, so that crash
// images made from the log carry it too.

import Media
import Units

extension SimulatedDevice {
    /// Inverts one bit (0...7) of the byte at `offset`.
    public func flipBit(_ bit: Int, at offset: MediumOffset) {
        overwrite(at: offset, with: [bytes(at: offset, count: 1)[0] ^ 1 << UInt8(bit)])
    }

    /// Replaces bytes.
    public func overwrite(at offset: MediumOffset, with bytes: [UInt8]) {
        let pieces = unsafe bytes.withUnsafeBytes { unsafe SparseContent.pieces(of: $0, at: offset.rawValue) }
        damage(
            WriteRecord(offset: offset, length: ByteCount(bytes.count), persistence: .ordinary, pieces: pieces))
    }

    /// Puts a copy of what is at `source` at `target`: a duplicated or misdirected block.
    public func duplicate(from source: MediumOffset, to target: MediumOffset, _ length: ByteCount) {
        overwrite(at: target, with: bytes(at: source, count: length.int))
    }

    /// Puts back what readers saw there when only the first `point` events of the log had happened: a
    /// stale block. O(blocks the events touch).
    public func makeStale(at offset: MediumOffset, _ length: ByteCount, asOf point: Int) {
        var cursor = crashCursor()
        cursor.advance(to: point)
        let old = cursor.point.image(.all).device
        overwrite(at: offset, with: old.bytes(at: offset, count: length.int))
    }

    private func damage(_ record: WriteRecord) {
        state.with { state in
            for piece in record.pieces { state.visible.apply(piece) }
            state.append(.damage(record), by: nil)
        }
    }
}
