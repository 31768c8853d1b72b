// What a commit that was cut short leaves in the place of the next slot.
//
// Invariant: nothing is written to segments on the strength of generation N while the place of slot N+1 holds a
// torn slot. That could become whole by the next slot's being torn too (the parts that it lacks may be the same in
// both) and would then name blocks that have been overwritten since.

import Media
import StoreFormat
import Units

extension CheckpointStore {
    /// Wipes the place of the slot behind `slot` where it holds remains. The commit lock is held.
    func wipeRemains(behind slot: Slot) throws(StoreError) {
        let remains = has(.leavesRemains) ? [] : try SlotRing.remains(behind: slot, on: medium)
        for twin in remains { try SlotRing.wipe(behind: slot, twin: twin, on: medium) }
        guard !remains.isEmpty else { return }
        do { try onMedium { () throws(MediumError) in try medium.flush() } } catch { throw fail(error) }
    }

    /// Gives `claim` up again when there are remains, which may name what is in its segment, and wipes them. The
    /// commit lock is not held. Returns whether the claim may be used.
    func confirm(_ claim: SegmentClaim) throws(StoreError) -> Bool {
        if has(.leavesRemains) { return true }
        do throws(StoreError) {
            if try SlotRing.remains(behind: try newestSlot(), on: medium).isEmpty { return true }
        } catch {
            release([claim])
            throw error
        }
        release([claim])
        // Preparing to commit wipes them; where another process is just writing its slots, this waits for it.
        try prepareToCommit()
        return false
    }
}

extension SlotRing {
    /// The twins of the slot behind `slot` that are neither zero nor a slot.
    static func remains(behind slot: Slot, on medium: any Medium) throws(StoreError) -> [UInt8] {
        var twins: [UInt8] = []
        for twin in [UInt8(0), 1] {
            let bytes = try medium.bytes(at: placeBehind(slot, twin: twin), count: Slot.encodedLength)
            guard bytes.contains(where: { $0 != 0 }) else { continue }
            let position = Int(slot.generation.next.rawValue % UInt64(Slot.ringLength))
            if unsafe (try? Slot.decode(bytes.span.bytes, position: position, twin: twin)) == nil { twins.append(twin) }
        }
        return twins
    }

    /// Puts zeros there; not durable before the next flush.
    static func wipe(behind slot: Slot, twin: UInt8, on medium: any Medium) throws(StoreError) {
        let zeros = AlignedBuffer(count: Slot.encodedLength)
        zeros.clear(0..<zeros.count)
        try onMedium { () throws(MediumError) in
            unsafe try medium.write(at: placeBehind(slot, twin: twin), UnsafeRawBufferPointer(zeros.bytes))
        }
    }

    private static func placeBehind(_ slot: Slot, twin: UInt8) -> MediumOffset {
        let position = Int(slot.generation.next.rawValue % UInt64(Slot.ringLength))
        return place(position: position, twin: twin, twinOffset: slot.geometry.twinOffset)
    }
}
