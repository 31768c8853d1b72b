// Reading and writing parts of groups.
//
// Invariant: a hash changes in the map only when the bytes that it belongs to have been written.

import CheckpointCore
import PageCodec
import Units

extension CowFile {
    /// Reads bytes of one group. What `buffer` holds when this throws is undefined, but never bytes of the file that were not verified.
    ///
    /// - Returns: false when the file does not have the group; `buffer` is as it was then.
    /// - Throws: `.corrupt` when the bytes are not those that were written; `.ioFailed`.
    public func read(at offset: DiskOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Bool {
        let (group, range) = place(offset, buffer.count)
        let place: (slot: SlotIndex, hashes: [Hash128])? = state.waitFor { state in
            guard !state.busy.contains(group) else { return nil }
            guard let slot = state.map.slot(of: group) else { return .some(nil) }
            state.busy.insert(group)
            return (slot, state.map.hashes(of: slot))
        }
        guard let (slot, hashes) = place else { return false }
        defer { leave(group) }
        let blocks = layout.blocks(touching: range)
        let copy = PrivateBytes(blocks.count * CowLayout.blockSize)
        try readBlocks(blocks, of: slot, hashes, into: copy)
        let start = range.lowerBound - blocks.lowerBound * CowLayout.blockSize
        unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(copy.part(start..<start + range.count)))
        return true
    }

    /// Writes bytes of one group. Others may change `bytes` meanwhile: any mixture may be written then. Not durable until `flush` returns.
    ///
    /// - Parameter base: the content of the whole group so far; needed when the file does not have the group and `bytes` are only a part of it.
    /// - Throws: `.noSpace`: nothing has changed. `.ioFailed`, `.corrupt`: the group's bytes in the 4 KiB blocks that were to be written may
    ///   be unreadable.
    public func write(
        at offset: DiskOffset, _ bytes: UnsafeRawBufferPointer, over base: UnsafeRawBufferPointer? = nil
    ) throws(EngineError) {
        let (group, range) = place(offset, bytes.count)
        let present: (slot: SlotIndex, hashes: [Hash128], isFresh: Bool)? = try state.waitFor { (state) throws(EngineError) in
            if let failure = state.failure { throw failure }
            guard !state.isTakingSnapshot, !state.busy.contains(group) else { return nil }
            state.busy.insert(group)
            state.writerCount += 1
            guard let slot = state.map.slot(of: group) else { return .some(nil) }
            return (slot, state.map.hashes(of: slot), state.map.isFresh(slot))
        }
        defer { leave(group, isWriter: true) }
        if let present, present.isFresh {
            unsafe try writeInPlace(present.slot, present.hashes, range, bytes)
        } else {
            unsafe try writeElsewhere(group, present.map { ($0.slot, $0.hashes) }, range, bytes, base)
        }
    }

    private func leave(_ group: BlockGroup, isWriter: Bool = false) {
        state.withLock { state in
            state.busy.remove(group)
            if isWriter { state.writerCount -= 1 }
        }
        state.wake()
    }

    /// The group of a range, and the range counted from the group's start.
    private func place(_ offset: DiskOffset, _ count: Int) -> (BlockGroup, Range<Int>) {
        let group = geometry.group(of: offset)
        let bytes = geometry.bytes(of: group)
        let start = (offset - bytes.lowerBound).int
        precondition(count > 0 && start + count <= bytes.byteCount.int, "a range of one group")
        return (group, start..<start + count)
    }

    /// Nobody can find a fresh slot after a crash, so it may be torn.
    private func writeInPlace(
        _ slot: SlotIndex, _ hashes: [Hash128], _ range: Range<Int>, _ bytes: UnsafeRawBufferPointer
    ) throws(EngineError) {
        let blocks = layout.blocks(touching: range)
        let copy = PrivateBytes(blocks.count * CowLayout.blockSize)
        let start = blocks.lowerBound * CowLayout.blockSize
        for edge in Set([blocks.lowerBound, blocks.upperBound - 1]) {
            let whole = edge * CowLayout.blockSize..<(edge + 1) * CowLayout.blockSize
            guard whole.clamped(to: range) != whole else { continue }
            try readBlocks(edge..<edge + 1, of: slot, hashes, into: copy, at: whole.lowerBound - start)
        }
        unsafe copy.part(range.lowerBound - start..<range.upperBound - start).copyMemory(from: bytes)
        unsafe try storage.write(at: layout.start(of: slot) + ByteCount(start), UnsafeRawBufferPointer(copy.bytes))
        state.withLock { $0.map.setHashes(slot, from: blocks.lowerBound, Self.hashes(of: copy, count: blocks.count)) }
    }

    /// The durable map names the old slot, if there is one: the whole group goes to another.
    private func writeElsewhere(
        _ group: BlockGroup, _ old: (slot: SlotIndex, hashes: [Hash128])?, _ range: Range<Int>, _ bytes: UnsafeRawBufferPointer,
        _ base: UnsafeRawBufferPointer?
    ) throws(EngineError) {
        let count = layout.blockCount(of: group)
        let copy = PrivateBytes(count * CowLayout.blockSize)
        let length = geometry.bytes(of: group).byteCount.int
        if let old {
            try readBlocks(0..<count, of: old.slot, old.hashes, into: copy)
        } else if range.count < length {
            guard let base = unsafe base, base.count == length else { preconditionFailure("a new group needs its whole content") }
            unsafe copy.bytes.copyMemory(from: base)
        }
        unsafe copy.part(range).copyMemory(from: bytes)
        let slot = try takeSlot()
        do throws(EngineError) {
            unsafe try storage.write(at: layout.start(of: slot), UnsafeRawBufferPointer(copy.bytes))
        } catch {
            state.withLock { $0.map.giveBack(slot) }
            throw error
        }
        state.withLock { $0.map.assign(group, to: slot, Self.hashes(of: copy, count: count)) }
    }

    /// A slot to write to. The map pages of a new chunk get their room before anybody uses its slots.
    private func takeSlot() throws(EngineError) -> SlotIndex {
        let (slot, chunk): (SlotIndex?, ChunkIndex) = state.waitFor { state in
            if let slot = state.map.take() { return (slot, state.map.nextChunk) }
            guard !state.isGrowing else { return nil }
            state.isGrowing = true
            return (nil, state.map.nextChunk)
        }
        if let slot { return slot }
        let growth = Result { () throws(EngineError) in
            try storage.provide(layout.mapPage(chunk, twin: 0), bytes: 2 * CowLayout.mapPageSize)
        }
        let added: SlotIndex? = state.withLock { state in
            state.isGrowing = false
            guard case .success = growth else { return nil }
            state.map.addChunk()
            return state.map.take()
        }
        state.wake()
        try growth.get()
        return added!
    }

    /// Reads whole blocks and verifies them.
    private func readBlocks(
        _ blocks: Range<Int>, of slot: SlotIndex, _ hashes: [Hash128], into copy: PrivateBytes, at start: Int = 0
    ) throws(EngineError) {
        let length = blocks.count * CowLayout.blockSize
        let place = layout.start(of: slot) + ByteCount(blocks.lowerBound * CowLayout.blockSize)
        guard unsafe try storage.read(at: place, into: copy.part(start..<start + length)) == length else {
            throw damage("the file ends in the middle of a block group")
        }
        for (number, block) in blocks.enumerated() where hashes[block] != Self.hash(of: copy, start + number * CowLayout.blockSize) {
            throw damage("the 4096 bytes at offset \(place + ByteCount(number * CowLayout.blockSize)) are not those that were written")
        }
    }

    func damage(_ reason: String) -> EngineError {
        EngineError(
            .corrupt, reason, remedy: "Look after the medium; what the machine wrote since its checkpoint is damaged in that place.",
            place: name)
    }

    private static func hash(of copy: PrivateBytes, _ start: Int) -> Hash128 {
        unsafe hash128(UnsafeRawBufferPointer(copy.part(start..<start + CowLayout.blockSize)))
    }

    private static func hashes(of copy: PrivateBytes, count: Int) -> [Hash128] {
        (0..<count).map { hash(of: copy, $0 * CowLayout.blockSize) }
    }
}
