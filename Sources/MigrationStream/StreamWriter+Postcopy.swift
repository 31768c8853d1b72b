// What the source of a postcopy migration says besides memory. In the order of the conversation:
//
//     header, openReturnPath, ping(1), adviseOfPostcopy, ramBlocks,
//     discard(…) at least once, since QEMU 7.2 does not leave its state of discarding otherwise and deadlocks,
//     package(deviceState.sectionBytes)      // from here on the destination runs and asks for pages (ReturnPathParser)
//     pages and zeroPages, each page once, endSection after each answer; every page of every block,
//     endRAM, endOfStream
//
// A destination that lost its source, on a new connection:
//
//     resumeBlocks(blocks), requestReceivedBitmap for each block and wait for it, resumePostcopy, wait for the
//     acknowledgement, then pages as before.
//
// Invariant: a command never comes within a section.

import CheckpointCore
import Units

extension StreamWriter {
    private enum Command {
        static let openReturnPath: UInt16 = 1
        static let ping: UInt16 = 2
        static let advise: UInt16 = 3
        static let listen: UInt16 = 4
        static let run: UInt16 = 5
        static let discard: UInt16 = 6
        static let packaged: UInt16 = 7
        static let resume: UInt16 = 9
        static let receivedBitmap: UInt16 = 10
    }

    /// Asks the destination to answer on the same connection.
    public mutating func openReturnPath() { command(Command.openReturnPath, []) }

    /// Asks for a `pong` with the same value.
    public mutating func ping(_ value: UInt32) {
        var payload: [UInt8] = []
        payload.appendBigEndian(value)
        command(Command.ping, payload)
    }

    /// Says that postcopy will follow.
    /// - Parameter pageSizes: the sizes of the pages of all blocks, combined by OR: 0x1000, or 0x201000 with huge pages of 2 MiB.
    public mutating func adviseOfPostcopy(pageSizes: UInt64) {
        var payload: [UInt8] = []
        payload.appendBigEndian(pageSizes)
        payload.appendBigEndian(UInt64(pageSize))
        command(Command.advise, payload)
    }

    /// Tells the destination to forget pages of a block. Needed once at least, even where nothing has been sent.
    public mutating func discard(block: Int, _ pages: Range<PageIndex>) {
        var payload: [UInt8] = [0]
        payload.appendCounted(blocks[block].name)
        payload.append(0)
        payload.appendBigEndian(pages.lowerBound.rawValue * UInt64(pageSize))
        payload.appendBigEndian((pages.upperBound - pages.lowerBound).bytes.rawValue)
        command(Command.discard, payload)
    }

    /// Device state and the commands around it in one packet, after which the destination runs.
    /// - Parameters:
    ///   - sections: all devices' sections, without the end-of-stream byte: `DeviceState.sectionBytes`.
    ///   - ping: the value of the `pong` that says that the destination has loaded them.
    public mutating func package(_ sections: ArraySlice<UInt8>, ping value: UInt32) {
        var inner = StreamWriter(reservedBytes: ByteCount(sections.count + 64))
        inner.command(Command.listen, [])
        inner.buffer.append(contentsOf: sections)
        inner.ping(value)
        inner.command(Command.run, [])
        precondition(inner.buffer.count <= Int(UInt32.max), "device state of 4 GiB")
        var payload: [UInt8] = []
        payload.appendBigEndian(UInt32(inner.buffer.count))
        command(Command.packaged, payload)
        buffer.append(contentsOf: inner.buffer)
    }

    /// Asks which pages of a block have arrived: the answer is `ReturnPathMessage.receivedPages`.
    public mutating func requestReceivedBitmap(block: Int) {
        var payload: [UInt8] = []
        payload.appendCounted(blocks[block].name)
        command(Command.receivedBitmap, payload)
    }

    /// Says that pages go on coming: the answer is `ReturnPathMessage.resumed`.
    public mutating func resumePostcopy() { command(Command.resume, []) }

    private mutating func command(_ command: UInt16, _ payload: [UInt8]) {
        endSection()
        buffer.append(StreamLayout.Section.command)
        buffer.appendBigEndian(command)
        buffer.appendBigEndian(UInt16(payload.count))
        buffer.append(contentsOf: payload)
    }
}
