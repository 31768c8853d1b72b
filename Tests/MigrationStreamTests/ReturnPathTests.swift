// The two directions of a postcopy.

import CheckpointCore
import MigrationStream
import Testing
import Units

private let blocks = [
    StreamRAMBlock(name: "mem0", byteLength: ByteCount(70 * pageSize)),
    StreamRAMBlock(name: "pc.bios", byteLength: ByteCount(2 * pageSize)),
]

/// Feeds `bytes` in pieces that end at `cuts`.
private func messages(_ bytes: [UInt8], cuts: [Int] = []) throws -> [ReturnPathMessage] {
    var (parser, messages, consumed) = (ReturnPathParser(blocks: blocks), [ReturnPathMessage](), 0)
    for cut in cuts + [bytes.count] {
        unsafe consumed += try bytes[consumed..<cut].withUnsafeBytes { bytes in
            unsafe try parser.feed(bytes) { (message) throws(EngineError) in messages.append(message) }
        }
    }
    try parser.finish()
    return messages
}

private func message(_ kind: UInt16, _ payload: [UInt8]) -> [UInt8] {
    kind.bigEndianBytes + UInt16(payload.count).bigEndianBytes + payload
}
private func counted(_ name: String) -> [UInt8] { [UInt8(name.utf8.count)] + Array(name.utf8) }
private func range(_ start: Int, _ count: Int) -> [UInt8] {
    UInt64(start * pageSize).bigEndianBytes + UInt32(count * pageSize).bigEndianBytes
}
private let bitmap = [UInt8](0..<16)
private func bitmapMessage(size: UInt64 = 16, end: UInt64 = 0x0123_4567_89ab_cdef) -> [UInt8] {
    message(5, counted("mem0")) + size.bigEndianBytes + bitmap + end.bigEndianBytes
}

@Test func `all that a destination says is understood, however it is cut`() throws {
    let bytes =
        message(2, UInt32(1).bigEndianBytes) + message(3, range(1, 1) + counted("pc.bios")) + message(4, range(0, 2))
        + message(3, range(69, 1) + counted("mem0")) + bitmapMessage() + message(6, UInt32(1).bigEndianBytes)
        + message(1, UInt32(0).bigEndianBytes)
    let expected: [ReturnPathMessage] = [
        .pong(1), .requestPages(block: 1, PageIndex(1)..<PageIndex(2)), .requestPages(block: 1, PageIndex(0)..<PageIndex(2)),
        .requestPages(block: 0, PageIndex(69)..<PageIndex(70)), .receivedPages(block: 0, bitmap: bitmap),
        .resumed(value: 1), .shut(status: 0),
    ]
    #expect(try messages(bytes) == expected)
    #expect(try messages(bytes, cuts: Array(1..<bytes.count)) == expected)
    for cut in 1..<bytes.count { #expect(try messages(bytes, cuts: [cut]) == expected, "cut at \(cut)") }
}

@Test func `a destination that breaks the rules is refused`() throws {
    let cases: [(name: String, bytes: [UInt8])] = [
        ("unknown", message(9, [])), ("long", message(2, [0, 0, 0, 0, 0])), ("short", message(4, [0, 0])),
        ("before a name", message(4, range(0, 1))), ("unknown block", message(3, range(0, 1) + counted("x"))),
        ("outside", message(3, range(70, 1) + counted("mem0"))), ("too long", message(3, range(1, 2) + counted("pc.bios"))),
        ("nothing", message(3, range(1, 0) + counted("mem0"))),
        ("in a page", message(3, UInt64(7).bigEndianBytes + UInt32(4096).bigEndianBytes + counted("mem0"))),
        ("far away", message(3, UInt64.max.bigEndianBytes + UInt32(4096).bigEndianBytes + counted("mem0"))),
        ("name's length", message(3, range(0, 1) + counted("mem0") + [0])),
        ("bitmap's size", bitmapMessage(size: 24)), ("huge bitmap", bitmapMessage(size: .max)),
        ("bitmap's end", bitmapMessage(end: 1)), ("cut", Array(bitmapMessage().dropLast())), ("cut short", [0]),
    ]
    for (name, bytes) in cases {
        let error = #expect(throws: EngineError.self, "\(name)") { try messages(bytes) }
        #expect(error?.code == .protocolViolation, "\(name)")
    }
}

@Test func `a source's commands are laid out as QEMU reads them`() {
    var writer = StreamWriter()
    writer.resumeBlocks(blocks)
    writer.openReturnPath()
    writer.ping(1)
    writer.adviseOfPostcopy(pageSizes: 0x201000)
    writer.discard(block: 1, PageIndex(0)..<PageIndex(2))
    writer.requestReceivedBitmap(block: 0)
    writer.resumePostcopy()
    writer.package([4, 5, 6], ping: 3)
    let expected: [[UInt8]] = [
        [8, 0, 1, 0, 0], [8, 0, 2, 0, 4, 0, 0, 0, 1],
        [8, 0, 3, 0, 16] + UInt64(0x201000).bigEndianBytes + UInt64(4096).bigEndianBytes,
        [8, 0, 6, 0, 26, 0] + counted("pc.bios") + [0] + UInt64(0).bigEndianBytes + UInt64(8192).bigEndianBytes,
        [8, 0, 10, 0, 5] + counted("mem0"), [8, 0, 9, 0, 0],
        [8, 0, 7, 0, 4, 0, 0, 0, 22] + [8, 0, 4, 0, 0] + [4, 5, 6] + [8, 0, 2, 0, 4, 0, 0, 0, 3] + [8, 0, 5, 0, 0],
    ]
    #expect(writer.takeBytes() == Array(expected.joined()))
}

@Test func `pages of a resumed postcopy name their block again, and commands end their section`() throws {
    var writer = StreamWriter()
    writer.resumeBlocks(blocks)
    writer.zeroPages(block: 1, PageIndex(1)..<PageIndex(2))
    writer.ping(7)
    writer.endSection()
    let section = [2] + UInt32(2).bigEndianBytes + UInt64(0x1002).bigEndianBytes + counted("pc.bios") + [0]
    let end = UInt64(0x10).bigEndianBytes + [0x7e] + UInt32(2).bigEndianBytes
    #expect(writer.takeBytes() == section + end + [8, 0, 2, 0, 4, 0, 0, 0, 7])
}
