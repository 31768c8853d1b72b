// The slot rings: where the newest state of a store is found (format, section 3).
//
// Invariant: a slot is used only after its checksum, its place and its twin have been checked, and a
// store whose newest slots are gone is an error, never a silent older view.

import Media
import StoreFormat
import Units

/// What the two rings say.
struct RingState {
    /// The generation to use: the newest, or the one that was asked for.
    var slot: Slot
    /// Rings (0, 1) whose twin of the newest generation is missing or damaged.
    var damagedTwins: [UInt8]
    /// Every generation that a valid slot names, ascending.
    var generations: [Generation]
    /// Set when slots newer than the newest valid one must have existed.
    var lost: String?
}

enum SlotRing {
    private static let ringBytes = Slot.ringLength * Slot.encodedLength

    /// Reads both rings and chooses. `generation` asks for an older state than the newest.
    ///
    /// Slots are read without the commit lock, so what looks damaged may be half written: it counts only when it
    /// looks the same once more.
    static func read(_ medium: any Medium, generation: Generation?) throws(StoreError) -> RingState {
        var last: String?
        while true {
            do throws(StoreError) {
                let state = try readOnce(medium, generation: generation)
                guard let lost = state.lost, generation == nil, lost != last else { return state }
                last = lost
            } catch {
                guard error.code == .corrupt || error.code == .notAStore, error.description != last else { throw error }
                last = error.description
            }
        }
    }

    private static func readOnce(_ medium: any Medium, generation: Generation?) throws(StoreError) -> RingState {
        guard medium.size.rawValue >= UInt64(ringBytes) else { throw notAStore(medium, "it is too short") }
        let ringA = try readRing(medium, at: .zero, twin: 0)
        try requireUsable(ringA, medium, generation: generation)
        var slots = ringA.slots
        var positions = [ringA.state]
        var unreadable = ringA.unreadable
        if let twinOffset = slots.max(by: { $0.generation < $1.generation })?.geometry.twinOffset {
            guard twinOffset.rawValue + UInt64(ringBytes) <= medium.size.rawValue else { throw truncated(medium, twinOffset) }
            let ringB = try readRing(medium, at: twinOffset, twin: 1)
            try requireUsable(ringB, medium, generation: generation)
            slots += ringB.slots
            positions.append(ringB.state)
            unreadable = unreadable ?? ringB.unreadable
        } else if let ringB = try findRingB(medium) {
            try requireUsable(ringB, medium, generation: generation)
            slots += ringB.slots
            positions.append(ringB.state)
            unreadable = unreadable ?? ringB.unreadable
        }
        guard let newest = slots.max(by: { $0.generation < $1.generation }) else {
            if let failure = ringA.failure { throw failure }
            throw notAStore(medium, "there is no superblock on it")
        }
        if let unreadable, positions[0].indices.contains(where: { hides($0, positions) }) { throw unreadable }
        let agreed = try agreed(slots, newest: newest, medium)
        var state = RingState(
            slot: agreed, damagedTwins: [], generations: Array(Set(slots.map(\.generation))).sorted(),
            lost: lostPositions(positions, newest: newest.generation))
        let healthy = slots.filter { $0.generation == newest.generation && $0.kind == agreed.kind }.map(\.twin)
        state.damagedTwins = [0, 1].filter { !healthy.contains($0) }
        if let generation, generation != newest.generation {
            guard let older = slots.first(where: { $0.generation == generation }) else {
                throw StoreError(
                    .notFound, "generation \(generation) is not in the slot ring",
                    remedy: "It has \(state.generations.map(\.description).joined(separator: ", ")).", medium: medium.name)
            }
            state.slot = older
        }
        return state
    }

    /// The newest slot above `slot`, or nil when that is still the newest. Two small reads as a rule.
    static func newer(than slot: Slot, on medium: any Medium) throws(StoreError) -> Slot? {
        var newest: Slot?
        var generation = slot.generation
        while true {
            let position = Int(generation.next.rawValue % UInt64(Slot.ringLength))
            var found: Slot?
            var sawTwin = false
            for twin in [UInt8(0), 1] where found == nil {
                let offset = place(position: position, twin: twin, twinOffset: slot.geometry.twinOffset)
                // One twin is enough: the other may fail to be read.
                let isLast = twin == 1 && !sawTwin
                guard let bytes = try readable(medium, at: offset, count: Slot.encodedLength, isLast: isLast) else { continue }
                sawTwin = true
                if let candidate = unsafe try? Slot.decode(bytes.span.bytes, position: position, twin: twin),
                    candidate.generation > generation, candidate.uuid == slot.uuid
                {
                    found = candidate
                }
            }
            guard let found else { return newest }
            newest = found
            generation = found.generation
        }
    }

    static func place(position: Int, twin: UInt8, twinOffset: MediumOffset) -> MediumOffset {
        (twin == 0 ? MediumOffset.zero : twinOffset) + ByteCount(position * Slot.encodedLength)
    }

    /// Writes one twin of `slot` to its place; not durable before the next flush.
    static func write(_ slot: Slot, twin: UInt8, to medium: any Medium) throws(StoreError) {
        let position = Int(slot.generation.rawValue % UInt64(Slot.ringLength))
        let offset = place(position: position, twin: twin, twinOffset: slot.geometry.twinOffset)
        let buffer = AlignedBuffer(count: Slot.encodedLength)
        unsafe buffer.bytes.copyBytes(from: slot.encoded(twin: twin))
        try onMedium { () throws(MediumError) in
            unsafe try medium.write(at: offset, UnsafeRawBufferPointer(buffer.bytes))
        }
    }

    /// Slots of both rings that are damaged or missing, in words. Those of the newest generation and of the next one are not
    /// looked at: a crash within a commit may leave them so.
    static func damagedSlots(_ medium: any Medium, newest: Slot) throws(StoreError) -> [String] {
        let rings = [
            try readRing(medium, at: .zero, twin: 0), try readRing(medium, at: newest.geometry.twinOffset, twin: 1),
        ]
        let skipped = [newest.generation, newest.generation.next].map(Slot.position(of:))
        return (0..<Slot.ringLength).filter { !skipped.contains($0) }.flatMap { position in
            let states = rings.map { $0.state[position] }
            return [0, 1].filter { states[$0] == .torn || states[$0] == .unreadable || (states[$0] == .zero && states[1 - $0] != .zero) }.map {
                "slot \(position) of ring \($0 == 0 ? "A" : "B") is damaged or missing"
            }
        }
    }

    // MARK: one ring

    /// `unreadable`: the medium failed to read it, which says nothing about what was written there.
    private enum PositionState { case zero, valid, torn, unreadable }

    private struct Ring {
        var slots: [Slot] = []
        var state: [PositionState] = []
        /// The newest slot that is valid, but whose fields break the rules.
        var broken: (generation: Generation, failure: StoreError)?
        var failure: StoreError?
        /// What kept slots from being read.
        var unreadable: StoreError?
    }

    /// A slot that its writer sealed is no torn one, whatever it says: when the newest breaks the rules, the store is corrupt
    /// and the one before it is not the newest.
    private static func requireUsable(
        _ ring: Ring, _ medium: any Medium, generation: Generation?
    ) throws(StoreError) {
        guard let broken = ring.broken, generation == nil || generation == broken.generation else { return }
        if ring.slots.allSatisfy({ $0.generation < broken.generation }) { throw broken.failure }
    }

    /// The bytes of a range; nil when the device failed to read them, unless nobody else could say what they say (`isLast`).
    private static func readable(
        _ medium: any Medium, at offset: MediumOffset, count: Int, isLast: Bool = false
    ) throws(StoreError) -> [UInt8]? {
        do throws(StoreError) { return try medium.bytes(at: offset, count: count) } catch {
            guard error.code == .ioFailed, !isLast else { throw error }
            return nil
        }
    }

    /// The slot in a ring that was read whole, or else read by itself.
    private static func slot(
        in whole: [UInt8]?, _ range: Range<Int>, _ medium: any Medium, at ring: MediumOffset
    ) throws(StoreError) -> [UInt8]? {
        if let whole { return Array(whole[range]) }
        return try readable(medium, at: ring + ByteCount(range.lowerBound), count: range.count)
    }

    private static func unreadable(_ medium: any Medium, at offset: MediumOffset) -> StoreError {
        StoreError(
            .ioFailed, "the device failed to read superblock slots that may be the newest",
            remedy: "Check the device; an older generation may still be opened for reading.", medium: medium.name, offset: offset)
    }

    private static func readRing(_ medium: any Medium, at offset: MediumOffset, twin: UInt8) throws(StoreError) -> Ring {
        var ring = Ring()
        let whole = try readable(medium, at: offset, count: ringBytes)
        for position in 0..<Slot.ringLength {
            let range = position * Slot.encodedLength..<(position + 1) * Slot.encodedLength
            // When something in the ring can't be read, its other slots may well be, and there is the other ring.
            guard let slotBytes = try slot(in: whole, range, medium, at: offset) else {
                ring.state.append(.unreadable)
                ring.unreadable = unreadable(medium, at: offset + ByteCount(range.lowerBound))
                ring.failure = ring.unreadable
                continue
            }
            if slotBytes.allSatisfy({ $0 == 0 }) {
                ring.state.append(.zero)
                continue
            }
            do {
                unsafe ring.slots.append(try Slot.decode(slotBytes.span.bytes, position: position, twin: twin))
                ring.state.append(.valid)
            } catch {
                let place = offset + ByteCount(range.lowerBound)
                if let generation = unsafe Slot.sealedGeneration(slotBytes.span.bytes, position: position, twin: twin) {
                    let failure = try brokenSlot(error, generation, medium, at: place)
                    if ring.broken.map({ $0.generation < generation }) ?? true { ring.broken = (generation, failure) }
                    ring.state.append(.valid)
                } else {
                    ring.state.append(.torn)
                    ring.failure = judge(error, medium, at: place) ?? ring.failure
                }
            }
        }
        return ring
    }

    /// What is wrong with a slot that its writer sealed; versions and features are final.
    private static func brokenSlot(
        _ error: FormatError, _ generation: Generation, _ medium: any Medium, at offset: MediumOffset
    ) throws(StoreError) -> StoreError {
        if error.code == .unsupportedVersion || error.code == .unknownFeature {
            throw StoreError(
                .unsupported, "\(error)", remedy: "Use a newer ckstore to open it.", medium: medium.name, offset: offset)
        }
        return StoreError(
            .corrupt, "the superblock slot of generation \(generation) says what can't be (\(error))",
            remedy: "Open an older generation for reading, or restore the medium from a replica.", medium: medium.name,
            offset: offset)
    }

    /// Turns a slot's error into the store's: damage is remembered, and bytes without the magic are nothing at all.
    private static func judge(_ error: FormatError, _ medium: any Medium, at offset: MediumOffset) -> StoreError? {
        switch error.code {
        case .badMagic: return nil
        default:
            return StoreError(
                .corrupt, "no superblock slot is intact (\(error))",
                remedy: "Restore the medium from a replica; its first \(ringBytes) bytes and their twin are damaged.",
                medium: medium.name, offset: offset)
        }
    }

    private static func findRingB(_ medium: any Medium) throws(StoreError) -> Ring? {
        for offset in Geometry.twinOffsets {
            guard let end = offset.checkedAdd(ByteCount(ringBytes)), end.rawValue <= medium.size.rawValue else { break }
            var ring = try readRing(medium, at: offset, twin: 1)
            ring.slots.removeAll { $0.geometry.twinOffset != offset }
            if !ring.slots.isEmpty { return ring }
        }
        return nil
    }

    /// All slots must be of one store, and twins of the newest generation alike. Returns the newest to use: of unlike
    /// twins, of which one is poisoned, the poisoned one counts (poisoning was cut short between its writes).
    private static func agreed(_ slots: [Slot], newest: Slot, _ medium: any Medium) throws(StoreError) -> Slot {
        for slot in slots where slot.uuid != newest.uuid {
            throw StoreError(
                .corrupt, "superblock slots of two stores (\(slot.uuid), \(newest.uuid))",
                remedy: "Something has overwritten part of the store.", medium: medium.name)
        }
        let twins = slots.filter { $0.generation == newest.generation }
        guard twins.count == 2 else { return newest }
        var other = twins[1]
        other.twin = twins[0].twin
        if twins[0] == other { return newest }
        let poisoned = twins.filter { $0.kind == .poisoned }
        if poisoned.count == 1 { return poisoned[0] }
        throw StoreError(
            .corrupt, "the two superblock slots of generation \(newest.generation) contradict each other",
            remedy: "Open an older generation for reading, or restore the medium from a replica.", medium: medium.name)
    }

    /// True when a slot that can't be read may be the only one of a generation: nobody can say then which one is the newest. (Next to a
    /// place that was never written it is at most a commit that was cut short.)
    private static func hides(_ position: Int, _ rings: [[PositionState]]) -> Bool {
        let states = rings.map { $0[position] }
        return states.contains(.unreadable) && !states.contains(.valid) && !states.contains(.zero)
    }

    /// One commit in flight may leave the position behind the newest torn; more than that is loss.
    private static func lostPositions(_ rings: [[PositionState]], newest: Generation) -> String? {
        for ahead in 2..<Slot.ringLength {
            let generation = Generation(newest.rawValue + UInt64(ahead))
            let position = Int(generation.rawValue % UInt64(Slot.ringLength))
            let states = rings.map { $0[position] }
            if !states.contains(.valid), states.contains(.torn) {
                return "superblock lost: the slots at position \(position) are damaged, and generation \(generation) "
                    + "or a later one may have stood there"
            }
        }
        return nil
    }

    private static func truncated(_ medium: any Medium, _ twinOffset: MediumOffset) -> StoreError {
        StoreError(
            .truncated, "the medium has \(medium.size) bytes and ends before the second superblock ring",
            remedy: "Give it back its full size, or restore it from a replica.", medium: medium.name, offset: twinOffset)
    }

    private static func notAStore(_ medium: any Medium, _ why: String) -> StoreError {
        StoreError(
            .notAStore, "this is not a checkpoint store: \(why)", remedy: "Make one with `ckstore create \(medium.name)`.",
            medium: medium.name)
    }
}
