// The stream's bulk: sections of memory with their records, and the device state behind them.
//
// Invariants:
// - `elementOffset` is the start of the first record that has not been handed over, also when a window ends in a record.
// - The previous record's block outlives sections, as it does in QEMU.

import CheckpointCore
import Units

extension StreamParser {
    /// Between two sections: more memory, or the first section of a device.
    mutating func section(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let type = cursor.u8() else { return false }
        switch type {
        case StreamLayout.Section.full:
            cursor.position -= 1
            state = .deviceState
        case StreamLayout.Section.part, StreamLayout.Section.end:
            guard let id = cursor.u32() else { return false }
            guard id == ramSectionID else { throw corrupt("a part of section \(id), which is not its memory") }
            guard !hasEnded else { throw corrupt("more memory after the end of its memory") }
            hasEnded = type == StreamLayout.Section.end
            state = .records
        case StreamLayout.Section.command: throw postcopyCommand()
        case StreamLayout.Section.endOfStream: throw corrupt("no device state")
        default: throw corrupt("a section of type \(type) where memory or devices belong")
        }
        return true
    }

    mutating func footer(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let type = cursor.u8(), let id = cursor.u32() else { return false }
        guard type == StreamLayout.Section.footer, id == ramSectionID else {
            throw corrupt("no footer of section \(ramSectionID) at the section's end")
        }
        state = .section
        return true
    }

    /// Records of memory up to the end of the section or of the window.
    mutating func records(
        _ cursor: inout FieldCursor, base: UInt64, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        while true {
            elementOffset = base + UInt64(cursor.position)
            guard let word = cursor.u64() else { return false }
            let flags = word & StreamLayout.Flag.mask
            guard flags != StreamLayout.Flag.endOfSection else {
                guard word == flags else { throw corrupt("an end of a section with an offset") }
                state = .footer
                return true
            }
            guard let block = try recordBlock(&cursor, flags) else { return false }
            let offset = word & ~StreamLayout.Flag.mask
            guard offset < blocks[block].byteLength.rawValue else {
                throw corrupt("a page at \(offset) in \(blocks[block].name), which has \(blocks[block].byteLength) bytes")
            }
            let page = PageIndex(offset / UInt64(pageSize))
            switch flags & ~StreamLayout.Flag.sameBlock {
            case StreamLayout.Flag.page:
                guard let bytes = unsafe cursor.take(pageSize) else { return false }
                unsafe try handler.page(block: block, page, bytes)
            case StreamLayout.Flag.zero:
                guard let fill = cursor.u8() else { return false }
                guard fill == 0 else { throw corrupt("a zero page filled with \(fill)") }
                try handler.zeroPage(block: block, page)
            default: throw unknownFlags(flags)
            }
            currentBlock = block
        }
    }

    /// The block of a record: the previous one's, or the one that it names.
    /// - Returns: nil when the window ends within the name.
    @inline(__always) private func recordBlock(
        _ cursor: inout FieldCursor, _ flags: UInt64
    ) throws(EngineError) -> Int? {
        if flags & StreamLayout.Flag.sameBlock != 0 {
            guard let currentBlock else { throw corrupt("a record of the previous record's block, and none before") }
            return currentBlock
        }
        guard flags == StreamLayout.Flag.page || flags == StreamLayout.Flag.zero else { throw unknownFlags(flags) }
        guard let text = unsafe cursor.countedBytes() else { return nil }
        return unsafe try index(ofBlock: text)
    }

    private func index(ofBlock text: UnsafeRawBufferPointer) throws(EngineError) -> Int {
        for (index, block) in blocks.enumerated() where unsafe block.name.utf8.elementsEqual(text) { return index }
        throw corrupt(unsafe "a page of the RAM block \(try name(text, "RAM block")), which it does not list")
    }

    private func unknownFlags(_ flags: UInt64) -> EngineError {
        unsupported(
            "a record of memory with flags 0x\(String(flags, radix: 16))",
            remedy: "Switch off what changes records (xbzrle, compress, multifd) at its source.")
    }

    /// Hands the rest of the window over, whatever it is.
    mutating func deviceState(
        _ cursor: inout FieldCursor, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        guard cursor.remaining > 0, let bytes = unsafe cursor.take(cursor.remaining) else { return false }
        deviceStateBytes += ByteCount(bytes.count)
        guard deviceStateBytes <= deviceStateLimit else {
            throw corrupt("more than \(deviceStateLimit) bytes of device state")
        }
        unsafe tail.append(bytes)
        unsafe try handler.deviceState(bytes)
        return true
    }
}
