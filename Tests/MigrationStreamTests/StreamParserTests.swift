// Streams that are whole, cut, damaged or hostile.

import CheckpointCore
import MigrationStream
import Testing
import Units

@Test func `what the writer wrote the parser reads, with and without an end of the memory`() throws {
    for end in [true, false] {
        for device in [deviceBlob(), deviceBlob(description: nil)] {
            let (recorder, parser) = try parse(smallStream(end: end, device: device))
            #expect(recorder.parsed == smallContent)
            #expect(recorder.device == device)
            #expect(parser.deviceStateBytes == ByteCount(device.count))
        }
    }
}

@Test func `a stream may be cut anywhere on its way`() throws {
    let stream = smallStream()
    for cut in 1..<stream.count {
        let (recorder, parser) = try parse(stream, cuts: [cut])
        guard recorder.parsed == smallContent, recorder.device == deviceBlob(), parser.consumedBytes == ByteCount(stream.count)
        else {
            Issue.record("cut at \(cut)")
            return
        }
    }
    // Byte by byte, from an unconsumed rest that grows to a whole record.
    #expect(try parse(stream, cuts: Array(1..<stream.count)).recorder.parsed == smallContent)
}

@Test func `every stream that ends too early is refused, and says in what it ended`() throws {
    let stream = smallStream()
    // Behind the last footer and the end-of-stream byte the stream could be one without a description.
    let whole = stream.count - 5 - "{\"page_size\": 4096, \"devices\": [{}]}".utf8.count
    for length in 0..<stream.count where length != whole {
        do {
            _ = try parse(Array(stream[..<length]))
            Issue.record("\(length) of \(stream.count) bytes are taken for a whole stream")
            return
        } catch let error as EngineError {
            guard error.code == .corrupt, error.reason.contains("ends in") else {
                Issue.record("at \(length): \(error)")
                return
            }
        }
    }
    #expect(throws: EngineError.self) { try parse(Array(stream[..<100])) }
    let inMemory = #expect(throws: EngineError.self) { try parse(Array(stream[..<4000])) }
    #expect(inMemory?.reason == "the migration stream ends in a section of memory")
    let inDevices = #expect(throws: EngineError.self) { try parse(Array(stream[..<(stream.count - 60)])) }
    #expect(inDevices?.reason == "the migration stream ends in the device state")
}

@Test func `damaged streams are refused or read, and never more than they are`() throws {
    let stream = smallStream()
    let seed = UInt64.random(in: 0...UInt64.max)
    var random = SplitMix(state: seed)
    var refused = 0
    for _ in 0..<20_000 {
        var damaged = stream
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let at = Int.random(in: 0..<damaged.count, using: &random)
            // Half of the hits go to where the fields are.
            let offset = Bool.random(using: &random) ? at : at % 130
            damaged[offset] = UInt8.random(in: 0...255, using: &random)
        }
        if Bool.random(using: &random) { damaged.removeLast(Int.random(in: 0..<damaged.count, using: &random)) }
        do {
            let (recorder, _) = try parse(damaged)
            let bytes = recorder.parsed.reduce(recorder.device.count) { sum, parsed in
                if case .page(_, _, let page) = parsed { sum + page.count } else { sum + 1 }
            }
            #expect(bytes <= damaged.count, "seed \(seed)")
        } catch is EngineError { refused += 1 }
    }
    #expect(refused > 5_000, "seed \(seed)")
}

/// A stream's head up to the list of blocks, whose entries are given.
private func head(total: UInt64, _ list: [UInt8], capabilities: [UInt8] = [], version: UInt32 = 4) -> [UInt8] {
    UInt32(0x5145_564d).bigEndianBytes + UInt32(3).bigEndianBytes + [7] + UInt32(2).bigEndianBytes + Array("pc".utf8)
        + capabilities + [1] + UInt32(2).bigEndianBytes + [3] + Array("ram".utf8) + UInt32(0).bigEndianBytes
        + version.bigEndianBytes + (total | 4).bigEndianBytes + list + UInt64(0x10).bigEndianBytes + footer
}
private let footer: [UInt8] = [0x7e] + UInt32(2).bigEndianBytes
private func block(_ name: String, _ length: UInt64, _ more: [UInt8] = []) -> [UInt8] {
    [UInt8(name.utf8.count)] + Array(name.utf8) + length.bigEndianBytes + more
}
private func part(_ records: [UInt8], type: UInt8 = 2, id: UInt32 = 2) -> [UInt8] {
    [type] + id.bigEndianBytes + records + UInt64(0x10).bigEndianBytes + footer
}
private func zero(_ offset: UInt64, _ flags: UInt64 = 2, name: String? = "a", fill: UInt8 = 0) -> [UInt8] {
    (offset | flags).bigEndianBytes + (name.map { [UInt8($0.utf8.count)] + Array($0.utf8) } ?? []) + [fill]
}
private let ignoreShared: [UInt8] =
    [5, 26] + Array("configuration/capabilities".utf8) + UInt32(1).bigEndianBytes + UInt32(1).bigEndianBytes + [15]
    + Array("x-ignore-shared".utf8)

@Test func `each rule of the stream is kept`() throws {
    let good = head(total: 8192, block("a", 8192))
    #expect(try parse(good + part(zero(0)) + deviceBlob()).recorder.parsed.last == .zero(0, PageIndex(0)))
    let cases: [(name: String, bytes: [UInt8], says: String)] = [
        ("magic", [0] + good.dropFirst(), "no magic number"),
        ("version", Array(good[..<4]) + UInt32(2).bigEndianBytes + good[8...], "version 2"),
        ("no configuration", Array(good[..<8]) + good[15...], "where its configuration belongs"),
        ("long machine type", Array(good[..<9]) + UInt32(257).bigEndianBytes, "machine type of 257"),
        ("huge machine type", Array(good[..<9]) + UInt32.max.bigEndianBytes, "machine type of 4294967295"),
        ("ram version", head(total: 8192, block("a", 8192), version: 3), "memory of version 3"),
        ("no memory", head(total: 0, []), "no memory at all"),
        ("beyond the sum", head(total: 8192, block("a", 12288)), "where 8192 are left"),
        ("empty block", head(total: 8192, block("a", 0)), "of 0 bytes"),
        ("half a page", head(total: 8192, block("a", 100)), "of 100 bytes"),
        ("twice", head(total: 8192, block("a", 4096) + block("a", 4096)), "the RAM block a twice"),
        ("no name", head(total: 8192, block("", 8192)), "name is empty"),
        ("list without end", Array(good[..<(good.count - 13)]) + UInt64(2).bigEndianBytes, "no end after the list"),
        ("footer", Array(good.dropLast()) + [3], "no footer"),
        ("part of another", good + part(zero(0), id: 3), "section 3"),
        ("after the end", good + part([], type: 3) + part([]), "after the end of its memory"),
        ("outside", good + part(zero(8192)), "a page at 8192"),
        ("unknown block", good + part(zero(0, name: "b")), "RAM block b"),
        ("same as nothing", good + part(zero(0, 0x22, name: nil)), "none before"),
        ("compressed", good + part(zero(0, 0x100)), "flags 0x100"),
        ("both", good + part(zero(0, 0x0a)), "flags 0xa"),
        ("offset of the end", good + [2] + UInt32(2).bigEndianBytes + UInt64(0x1010).bigEndianBytes, "with an offset"),
        ("filled", good + part(zero(0, fill: 7)), "filled with 7"),
        ("no devices", good + part(zero(0)) + [0], "no device state"),
        ("command", good + [8, 0, 1, 0, 0], "command"),
        ("unknown type", good + [0x55], "type 85"),
        ("unknown capability", head(total: 8192, [], capabilities: [5, 26] + Array("configuration/capabilities".utf8)
            + UInt32(1).bigEndianBytes + UInt32(1).bigEndianBytes + block("z", 0)), "capability z"),
    ]
    for (name, bytes, says) in cases {
        let error = #expect(throws: EngineError.self, "\(name)") { try parse(bytes + part(zero(0)) + deviceBlob()) }
        #expect(error?.reason.contains(says) == true, "\(name): \(error?.reason ?? "")")
        #expect(error?.place.hasPrefix("byte ") == true, "\(name)")
    }
}

@Test func `a stream without shared memory tells where its blocks are`() throws {
    let list = block("a", 4096, UInt64(0xfffc_0000).bigEndianBytes) + block("b", 8192, UInt64(0).bigEndianBytes)
    let stream = head(total: 12288, list, capabilities: ignoreShared) + part(zero(0)) + deviceBlob()
    for cuts in [[], Array(1..<stream.count)] {
        let parsed = try parse(stream, cuts: cuts).recorder.parsed
        #expect(parsed[0] == .configuration("pc", ["x-ignore-shared"]))
        #expect(
            parsed[1]
                == .blocks([
                    StreamRAMBlock(name: "a", byteLength: ByteCount(4096), guestPhysicalAddress: 0xfffc_0000),
                    StreamRAMBlock(name: "b", byteLength: ByteCount(8192), guestPhysicalAddress: 0),
                ]))
        #expect(parsed.count == 3)
    }
}

@Test func `page sizes are there when the source can do postcopy`() throws {
    let stream = head(total: 2 << 20, block("a", 2 << 20, UInt64(2 << 20).bigEndianBytes)) + part(zero(0)) + deviceBlob()
    let parser = StreamParser(postcopyPageBytes: ["a": 2 << 20])
    #expect(try parse(stream, parser: parser).parser.blocks.first?.pageBytes == 2 << 20)
    #expect(throws: EngineError.self) { try parse(stream) }
    #expect(throws: EngineError.self) { try parse(stream, parser: StreamParser(postcopyPageBytes: ["a": 1 << 30])) }
}

@Test func `device state beyond its limit is refused`() throws {
    let stream = smallStream()
    let limit = ByteCount(deviceBlob().count)
    #expect(try parse(stream, parser: StreamParser(deviceStateLimit: limit)).recorder.device == deviceBlob())
    let error = #expect(throws: EngineError.self) {
        try parse(stream, parser: StreamParser(deviceStateLimit: limit - ByteCount(1)))
    }
    #expect(error?.reason.contains("bytes of device state") == true)
}

/// A generator that a seed repeats.
struct SplitMix: RandomNumberGenerator {
    var state: UInt64
    mutating func next() -> UInt64 {
        state &+= 0x9e37_79b9_7f4a_7c15
        var mixed = state
        mixed = (mixed ^ (mixed >> 30)) &* 0xbf58_476d_1ce4_e5b9
        mixed = (mixed ^ (mixed >> 27)) &* 0x94d0_49bb_1331_11eb
        return mixed ^ (mixed >> 31)
    }
}
