// The writer of QEMU's migration stream: the list of blocks, pages and device state in, bytes out. No I/O.
//
// How to use it, for a stream that a bare `-incoming` loads:
//
//     var writer = StreamWriter()
//     writer.header(machineType: "pc-i440fx-7.2")
//     writer.ramBlocks(blocks)                            // under the names that the loading machine knows them by
//     writer.pages(block: 0, at: first, bytes)            // any order, any number; sections come by themselves
//     writer.zeroPages(block: 0, range)
//     try writer.drain { (bytes) throws(EngineError) in send them }        // as often as `byteCount` says that it is worth it
//     writer.endRAM()
//     writer.deviceState(blob)
//     try writer.drain { … }
//
// For the messages of a postcopy source see StreamWriter+Postcopy.swift.
//
// Invariants:
// - What is appended is a piece of a valid stream at every moment at which no section is open; `drain` may come in between.
// - Nothing is allocated for a page once the buffer has grown to what the caller lets gather.
// - A call out of order, a block index that was not listed, a page outside its block: programmers' mistakes.

import CheckpointCore
import Units

/// Produces one migration stream. A value: use it from one thread at a time.
public struct StreamWriter {
    /// The bytes that have not been drained.
    var buffer: [UInt8] = []
    private(set) var blocks: [StreamRAMBlock] = []
    private var currentBlock: Int?
    private var isSectionOpen = false
    private static let ramSectionID: UInt32 = 2

    /// - Parameter reservedBytes: how much the caller lets gather between two drains; the buffer grows when it is more.
    public init(reservedBytes: ByteCount = .mebibytes(1)) { buffer.reserveCapacity(reservedBytes.int) }

    /// Bytes waiting to be drained.
    public var byteCount: ByteCount { ByteCount(buffer.count) }

    /// Hands over all bytes that wait. When `send` throws they are kept.
    public mutating func drain(
        _ send: (UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) {
        let failure: EngineError? = unsafe buffer.withUnsafeBytes { bytes in
            do throws(EngineError) {
                unsafe try send(bytes)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
        buffer.removeAll(keepingCapacity: true)
    }

    /// All bytes that wait, which then wait no more.
    public mutating func takeBytes() -> [UInt8] {
        defer { buffer = [] }
        return buffer
    }

    /// The stream's header and configuration.
    /// - Parameter machineType: the versioned name; 1 to 256 bytes.
    public mutating func header(machineType: String) {
        precondition(
            (1...StreamLayout.maximumMachineTypeBytes).contains(machineType.utf8.count), "a machine type of 1 to 256 bytes")
        buffer.appendBigEndian(StreamLayout.magic)
        buffer.appendBigEndian(StreamLayout.version)
        buffer.append(StreamLayout.Section.configuration)
        buffer.appendBigEndian(UInt32(machineType.utf8.count))
        buffer.append(contentsOf: machineType.utf8)
    }

    /// The list of RAM blocks. A block's `pageBytes` goes into it when it is not 4096, as a destination with the capability
    /// postcopy-ram expects it and no other does: give nil to those. `guestPhysicalAddress` is not written.
    public mutating func ramBlocks(_ blocks: [StreamRAMBlock]) {
        list(blocks)
        buffer.append(StreamLayout.Section.start)
        buffer.appendBigEndian(Self.ramSectionID)
        buffer.appendCounted(StreamLayout.ramName)
        buffer.appendBigEndian(UInt32(0))
        buffer.appendBigEndian(StreamLayout.ramVersion)
        buffer.appendBigEndian(blocks.reduce(0) { $0 + $1.byteLength.rawValue } | StreamLayout.Flag.memorySize)
        for block in blocks {
            buffer.appendCounted(block.name)
            buffer.appendBigEndian(block.byteLength.rawValue)
            if let pageBytes = block.pageBytes, pageBytes != UInt64(pageSize) { buffer.appendBigEndian(pageBytes) }
        }
        isSectionOpen = true
        endSection()
    }

    /// Says which blocks there are without writing their list: for a connection on which a broken postcopy goes on.
    public mutating func resumeBlocks(_ blocks: [StreamRAMBlock]) { list(blocks) }

    private mutating func list(_ blocks: [StreamRAMBlock]) {
        precondition(self.blocks.isEmpty && !blocks.isEmpty, "one list of blocks, and not an empty one")
        precondition(
            blocks.allSatisfy { $0.byteLength > .zero && $0.byteLength.rawValue % UInt64(pageSize) == 0 },
            "blocks of whole pages")
        self.blocks = blocks
    }

    /// Consecutive pages of a block; `bytes` is a multiple of 4096 long.
    public mutating func pages(block: Int, at first: PageIndex, _ bytes: UnsafeRawBufferPointer) {
        precondition(bytes.count % pageSize == 0, "whole pages")
        for index in 0..<(bytes.count / pageSize) {
            record(block: block, first + PageCount(index), StreamLayout.Flag.page)
            unsafe buffer.append(contentsOf: UnsafeRawBufferPointer(rebasing: bytes[(index * pageSize)..<((index + 1) * pageSize)]))
        }
    }

    /// Pages of zeros.
    public mutating func zeroPages(block: Int, _ pages: Range<PageIndex>) {
        for page in pages.lowerBound.rawValue..<pages.upperBound.rawValue {
            record(block: block, PageIndex(page), StreamLayout.Flag.zero)
            buffer.append(0)
        }
    }

    /// The head of a page's record; opens a section when none is open.
    private mutating func record(block: Int, _ page: PageIndex, _ flag: UInt64) {
        let offset = page.rawValue * UInt64(pageSize)
        precondition(offset < blocks[block].byteLength.rawValue, "a page outside its block")
        if !isSectionOpen { openSection(StreamLayout.Section.part) }
        let isSame = currentBlock == block
        buffer.appendBigEndian(offset | flag | (isSame ? StreamLayout.Flag.sameBlock : 0))
        if !isSame { buffer.appendCounted(blocks[block].name) }
        currentBlock = block
    }

    /// Ends the section that is open, if one is: what was written so far can be loaded as it is.
    public mutating func endSection() {
        guard isSectionOpen else { return }
        buffer.appendBigEndian(StreamLayout.Flag.endOfSection)
        buffer.append(StreamLayout.Section.footer)
        buffer.appendBigEndian(Self.ramSectionID)
        isSectionOpen = false
    }

    private mutating func openSection(_ type: UInt8) {
        buffer.append(type)
        buffer.appendBigEndian(Self.ramSectionID)
        isSectionOpen = true
    }

    /// Ends the memory: no more pages.
    public mutating func endRAM() {
        endSection()
        openSection(StreamLayout.Section.end)
        endSection()
    }

    /// The device state as it was taken, from the first section to the end of the stream.
    public mutating func deviceState(_ blob: [UInt8]) {
        precondition(!isSectionOpen, "a section of memory is open")
        buffer.append(contentsOf: blob)
    }

    /// The end of a stream whose device state has gone before, as postcopy's.
    public mutating func endOfStream() {
        precondition(!isSectionOpen, "a section of memory is open")
        buffer.append(StreamLayout.Section.endOfStream)
    }
}
