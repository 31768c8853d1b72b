// Superblock slots that have lost their twins.
//
// Invariant: a slot is written only where its twin stands, sound, in the other ring, and only under the commit lock.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Writes every slot again whose twin alone is left, those of older generations too. Durable on return.
    ///
    /// - Returns: how many were written.
    func rewriteTwins() throws(StoreError) -> Int {
        let newest = try newestSlot()
        let ring = try SlotRing.read(medium, generation: nil)
        // Preparing to commit writes the newest slot's twin.
        let count = ring.slot.generation == newest.generation ? ring.damagedTwins.count : 0
        return try underCommitLock { (base) throws(StoreError) in
            let lone: [(slot: Slot, twin: UInt8)] = try SlotRing.loneSlots(medium, newest: base)
            for (slot, twin) in lone { try SlotRing.write(slot, twin: twin, to: medium) }
            if !lone.isEmpty {
                do throws(StoreError) { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
            }
            return count + lone.count
        }
    }
}

extension SlotRing {
    /// The slots of older generations that only one ring has, with the ring that lacks them. The position of the next generation is left
    /// out: what a commit that was cut short left there has no twin.
    static func loneSlots(_ medium: any Medium, newest: Slot) throws(StoreError) -> [(slot: Slot, twin: UInt8)] {
        let skipped = [newest.generation, newest.generation.next].map(Slot.position(of:))
        var lone: [(Slot, UInt8)] = []
        for position in 0..<Slot.ringLength where !skipped.contains(position) {
            let slots = try [UInt8(0), 1].map { twin throws(StoreError) in
                try slot(at: position, twin: twin, medium, twinOffset: newest.geometry.twinOffset)
            }
            if let slot = slots[0], slots[1] == nil { lone.append((slot, 1)) }
            if let slot = slots[1], slots[0] == nil { lone.append((slot, 0)) }
        }
        return lone
    }

    /// A valid slot; nil where there is none.
    private static func slot(
        at position: Int, twin: UInt8, _ medium: any Medium, twinOffset: MediumOffset
    ) throws(StoreError) -> Slot? {
        do throws(StoreError) {
            let bytes = try medium.bytes(at: place(position: position, twin: twin, twinOffset: twinOffset), count: Slot.encodedLength)
            return unsafe try? Slot.decode(bytes.span.bytes, position: position, twin: twin)
        } catch {
            guard error.code == .ioFailed else { throw error }
            return nil
        }
    }
}
