// The stream's beginning: header, configuration, and the list of RAM blocks.
//
// Invariant: when the list has been handed over, the blocks' lengths are multiples of a page, not 0, and add up to what the stream
// announced; their names are unique.

import CheckpointCore
import Units

extension StreamParser {
    mutating func header(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let magic = cursor.u32() else { return false }
        guard magic == StreamLayout.magic else { throw corrupt("no magic number of QEMU at its start") }
        guard let version = cursor.u32() else { return false }
        guard version == StreamLayout.version else {
            throw unsupported("version \(version)", remedy: "Version \(StreamLayout.version) can be read.")
        }
        state = .configuration
        return true
    }

    mutating func configuration(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let type = cursor.u8() else { return false }
        guard type == StreamLayout.Section.configuration else {
            throw corrupt("a section of type \(type) where its configuration belongs")
        }
        guard let length = cursor.u32() else { return false }
        guard (1...StreamLayout.maximumMachineTypeBytes).contains(Int(length)) else {
            throw corrupt("a machine type of \(length) bytes")
        }
        guard let text = unsafe cursor.take(Int(length)) else { return false }
        machineType = unsafe try name(text, "machine type")
        state = .configurationEnd
        return true
    }

    /// After the machine type: the capabilities, or the start of the memory.
    mutating func configurationEnd(
        _ cursor: inout FieldCursor, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        guard let type = cursor.u8() else { return false }
        guard type == StreamLayout.Section.subsection else {
            cursor.position -= 1
            try handler.configuration(machineType: machineType, capabilities: capabilities)
            state = .ramStart
            return true
        }
        guard let text = unsafe cursor.countedBytes() else { return false }
        let subsection = unsafe try name(text, "part of the configuration")
        guard subsection == StreamLayout.capabilitiesName else {
            throw unsupported("a part \(subsection) in its configuration", remedy: "Switch that capability off at its source.")
        }
        guard let version = cursor.u32(), let count = cursor.u32() else { return false }
        guard version == 1, capabilities.isEmpty, (1...StreamLayout.maximumCapabilities).contains(Int(count)) else {
            throw corrupt("a list of capabilities that can't be (version \(version), \(count) entries)")
        }
        state = .capability(remaining: Int(count))
        return true
    }

    mutating func capability(
        _ cursor: inout FieldCursor, remaining: Int, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        guard let text = unsafe cursor.countedBytes() else { return false }
        let capability = unsafe try name(text, "capability")
        guard capability == StreamLayout.ignoreShared else {
            throw unsupported("the capability \(capability)", remedy: "Switch that capability off at its source.")
        }
        guard !capabilities.contains(capability) else { throw corrupt("the capability \(capability) twice") }
        capabilities.append(capability)
        state = remaining > 1 ? .capability(remaining: remaining - 1) : .configurationEnd
        return true
    }

    mutating func ramStart(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let type = cursor.u8() else { return false }
        guard type == StreamLayout.Section.start else {
            if type == StreamLayout.Section.command { throw postcopyCommand() }
            throw corrupt("a section of type \(type) where its memory belongs")
        }
        guard let id = cursor.u32(), let text = unsafe cursor.countedBytes() else { return false }
        let section = unsafe try name(text, "section")
        guard let instance = cursor.u32(), let version = cursor.u32() else { return false }
        guard section == StreamLayout.ramName, instance == 0 else {
            throw unsupported(
                "a section \(section) where its memory belongs",
                remedy: "Switch off the capability that adds it (block migration, dirty bitmaps).")
        }
        guard version == StreamLayout.ramVersion else {
            throw unsupported("memory of version \(version)", remedy: "Version \(StreamLayout.ramVersion) can be read.")
        }
        ramSectionID = id
        state = .ramSize
        return true
    }

    mutating func ramSize(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let word = cursor.u64() else { return false }
        guard word & StreamLayout.Flag.mask == StreamLayout.Flag.memorySize else {
            throw corrupt("flags \(word & StreamLayout.Flag.mask) where the size of its memory belongs")
        }
        unlistedBytes = word & ~StreamLayout.Flag.mask
        guard unlistedBytes > 0 else { throw corrupt("no memory at all") }
        state = .ramBlock
        return true
    }

    mutating func ramBlock(_ cursor: inout FieldCursor) throws(EngineError) -> Bool {
        guard let text = unsafe cursor.countedBytes(), let byteLength = cursor.u64() else { return false }
        let name = unsafe try name(text, "RAM block")
        var block = StreamRAMBlock(name: name, byteLength: ByteCount(byteLength))
        if let expected = postcopyPageBytes[name] {
            guard let pageBytes = cursor.u64() else { return false }
            guard pageBytes == expected else { throw corrupt("pages of \(pageBytes) bytes in \(name), not of \(expected)") }
            block.pageBytes = pageBytes
        }
        if capabilities.contains(StreamLayout.ignoreShared) {
            guard let address = cursor.u64() else { return false }
            block.guestPhysicalAddress = address
        }
        guard byteLength > 0, byteLength % UInt64(pageSize) == 0, byteLength <= unlistedBytes else {
            throw corrupt("a RAM block \(name) of \(byteLength) bytes, where \(unlistedBytes) are left")
        }
        guard !blocks.contains(where: { $0.name.utf8.elementsEqual(name.utf8) }) else {
            throw corrupt("the RAM block \(name) twice")
        }
        guard blocks.count < StreamLayout.maximumBlocks else {
            throw corrupt("more than \(StreamLayout.maximumBlocks) RAM blocks")
        }
        blocks.append(block)
        unlistedBytes -= byteLength
        state = unlistedBytes > 0 ? .ramBlock : .ramListEnd
        return true
    }

    mutating func ramListEnd(
        _ cursor: inout FieldCursor, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        guard let word = cursor.u64() else { return false }
        guard word == StreamLayout.Flag.endOfSection else { throw corrupt("no end after the list of RAM blocks") }
        try handler.ramBlocks(blocks)
        state = .footer
        return true
    }

    func postcopyCommand() -> EngineError {
        unsupported(
            "a command, as only postcopy has them", remedy: "Switch the capability postcopy-ram off at its source.")
    }
}
