// What a parser hands over, kept; and small streams to hand to it.

import CheckpointCore
import MigrationStream
import Units

/// One thing that a parser handed over.
enum Parsed: Equatable {
    case configuration(String, [String])
    case blocks([StreamRAMBlock])
    case page(Int, PageIndex, [UInt8])
    case zero(Int, PageIndex)
}

/// Keeps everything; the pieces of device state are joined.
struct Recorder: StreamHandler {
    var parsed: [Parsed] = []
    var device: [UInt8] = []

    mutating func configuration(machineType: String, capabilities: [String]) {
        parsed.append(.configuration(machineType, capabilities))
    }
    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) { parsed.append(.blocks(blocks)) }
    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) {
        unsafe parsed.append(.page(block, page, Array(bytes)))
    }
    mutating func zeroPage(block: Int, _ page: PageIndex) { parsed.append(.zero(block, page)) }
    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) { unsafe device += bytes }
}

/// Feeds `bytes` in pieces that end at `cuts`, as a reader with a window does, and finishes.
func parse(
    _ bytes: [UInt8], cuts: [Int] = [], parser: StreamParser = StreamParser()
) throws -> (recorder: Recorder, parser: StreamParser) {
    var (parser, recorder, consumed) = (parser, Recorder(), 0)
    for cut in cuts + [bytes.count] {
        unsafe consumed += try bytes[consumed..<cut].withUnsafeBytes { unsafe try parser.feed($0, &recorder) }
    }
    try parser.finish()
    return (recorder, parser)
}

/// A page that says where it belongs.
func patternPage(_ value: UInt8) -> [UInt8] { (0..<pageSize).map { UInt8(truncatingIfNeeded: $0 &* 7) &+ value } }

/// A section of a device.
func deviceSection(_ id: UInt32, _ name: String, _ data: [UInt8], instance: UInt32 = 0) -> [UInt8] {
    [4] + id.bigEndianBytes + [UInt8(name.utf8.count)] + Array(name.utf8) + instance.bigEndianBytes + UInt32(1).bigEndianBytes
        + data + [0x7e] + id.bigEndianBytes
}

/// Device state with three sections, one of them the run state, and perhaps a description.
func deviceBlob(state: String = "running", description: String? = "{\"page_size\": 4096, \"devices\": [{}]}") -> [UInt8] {
    let text = Array(state.utf8)
    let global = UInt32(text.count + 1).bigEndianBytes + text + [UInt8](repeating: 0, count: 100 - text.count)
    // The data of a device that has what looks like footers: its own without a section behind it, another's with one.
    let tricky: [UInt8] = [0x7e, 0, 0, 0, 4, 9, 0x7e, 0, 0, 0, 5, 4, 0, 0, 0, 1, 1, 65, 0, 0, 0, 0, 0, 0, 0, 1]
    let json = description.map { [6] + UInt32($0.utf8.count).bigEndianBytes + Array($0.utf8) } ?? []
    return deviceSection(3, "timer", Array(0..<24)) + deviceSection(4, "cpu", tricky) + deviceSection(9, "globalstate", global)
        + [0] + json
}

/// A stream as the writer makes it: two blocks, pages in any order, a page twice.
func smallStream(end: Bool = true, device: [UInt8] = deviceBlob()) -> [UInt8] {
    var writer = StreamWriter()
    writer.header(machineType: "pc-i440fx-7.2")
    writer.ramBlocks(smallBlocks)
    unsafe (patternPage(1) + patternPage(2)).withUnsafeBytes { unsafe writer.pages(block: 0, at: PageIndex(1), $0) }
    writer.zeroPages(block: 0, PageIndex(0)..<PageIndex(1))
    unsafe patternPage(3).withUnsafeBytes { unsafe writer.pages(block: 1, at: PageIndex(0), $0) }
    writer.endSection()
    writer.zeroPages(block: 1, PageIndex(1)..<PageIndex(2))
    unsafe patternPage(4).withUnsafeBytes { unsafe writer.pages(block: 0, at: PageIndex(1), $0) }
    if end { writer.endRAM() } else { writer.endSection() }
    writer.deviceState(device)
    return writer.takeBytes()
}

let smallBlocks = [
    StreamRAMBlock(name: "pc.ram", byteLength: ByteCount(3 * pageSize)),
    StreamRAMBlock(name: "/rom@etc/acpi/tables", byteLength: ByteCount(2 * pageSize)),
]

/// What `smallStream` holds.
let smallContent: [Parsed] = [
    .configuration("pc-i440fx-7.2", []), .blocks(smallBlocks), .page(0, PageIndex(1), patternPage(1)),
    .page(0, PageIndex(2), patternPage(2)), .zero(0, PageIndex(0)), .page(1, PageIndex(0), patternPage(3)),
    .zero(1, PageIndex(1)), .page(0, PageIndex(1), patternPage(4)),
]

extension FixedWidthInteger {
    /// The most significant byte first.
    var bigEndianBytes: [UInt8] { unsafe Swift.withUnsafeBytes(of: bigEndian) { unsafe Array($0) } }
}
