// The libFuzzer entry for QEMU's migration stream: every input goes through the parsers of MigrationStream.
//
// Invariant: a broken promise traps.

import CheckpointCore
import MigrationStream
import Units

/// Adds up what is handed over, so that two ways through the same bytes can be compared.
private struct Sums: StreamHandler, Equatable {
    var blocks: [StreamRAMBlock] = []
    var handed = 0
    var pages: UInt64 = 0
    var device: [UInt8] = []

    mutating func configuration(machineType: String, capabilities: [String]) { handed += machineType.utf8.count }
    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) {
        precondition(blocks.reduce(0) { $0 + $1.name.utf8.count + 9 } <= 1 << 20, "more blocks than the input can have")
        self.blocks = blocks
    }
    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) {
        count(block, page)
        handed += bytes.count
    }
    mutating func zeroPage(block: Int, _ page: PageIndex) { count(block, page) }
    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) { unsafe device += bytes }

    private mutating func count(_ block: Int, _ page: PageIndex) {
        precondition(page.rawValue < blocks[block].byteLength.rawValue / UInt64(pageSize), "a page outside its block")
        handed += 9
        pages = pages &* 31 &+ page.rawValue &+ UInt64(block)
    }
}

/// Feeds `input` in windows of `window` bytes; nil when it is refused.
private func parse(_ input: [UInt8], window: Int) -> Sums? {
    var (parser, sums, start) = (StreamParser(deviceStateLimit: .mebibytes(1)), Sums(), 0)
    do throws(EngineError) {
        while start < input.count {
            let end = min(input.count, start + window)
            let consumed = try feed(&parser, input[start..<end], &sums)
            precondition(consumed <= end - start, "more consumed than given")
            guard consumed > 0 else { break }
            start += consumed
        }
        try parser.finish()
    } catch { return nil }
    precondition(sums.handed <= 2 * input.count && sums.device.count <= input.count, "more handed over than given")
    return sums
}

private func feed(_ parser: inout StreamParser, _ bytes: ArraySlice<UInt8>, _ sums: inout Sums) throws(EngineError) -> Int {
    let result: Result<Int, EngineError> = unsafe bytes.withUnsafeBytes { buffer in
        do throws(EngineError) { return .success(unsafe try parser.feed(buffer, &sums)) } catch { return .failure(error) }
    }
    return try result.get()
}

private func exerciseStream(_ input: [UInt8]) {
    let whole = parse(input, window: max(1, input.count))
    precondition(parse(input, window: StreamParser.minimumWindowBytes) == whole, "windows make a difference")
    guard let whole, let state = try? DeviceState(whole.device) else { return }
    precondition(try! DeviceState(state.bytesWithoutDescription).sections == state.sections, "the description makes a difference")
    guard let runState = try? state.runState() else { return }
    var other = state
    try! other.setRunState("paused")
    try! other.setRunState(runState)
    precondition(other.sections == state.sections && (try? other.runState()) == runState, "the run state does not come back")
}

private func exerciseReturnPath(_ input: [UInt8]) {
    let blocks = [
        StreamRAMBlock(name: "a", byteLength: .mebibytes(1)), StreamRAMBlock(name: "pc.ram", byteLength: .mebibytes(64)),
    ]
    var results: [[ReturnPathMessage]?] = []
    for step in [input.count, 1] where !input.isEmpty {
        var (parser, messages, start, end) = (ReturnPathParser(blocks: blocks), [ReturnPathMessage](), 0, 0)
        do throws(EngineError) {
            while end < input.count {
                end = min(input.count, end + step)
                let result: Result<Int, EngineError> = unsafe input[start..<end].withUnsafeBytes { buffer in
                    do throws(EngineError) {
                        return .success(
                            unsafe try parser.feed(buffer) { (message) throws(EngineError) in messages.append(message) })
                    } catch { return .failure(error) }
                }
                start += try result.get()
            }
            try parser.finish()
            results.append(messages)
        } catch { results.append(nil) }
    }
    precondition(results.first == results.last, "cuts make a difference")
}

/// Called by libFuzzer for every input; a trap is a finding. The first byte chooses the direction.
@c(LLVMFuzzerTestOneInput) public func fuzzOneInput(_ bytes: UnsafePointer<UInt8>?, _ count: Int) -> CInt {
    let input = unsafe [UInt8](UnsafeBufferPointer(start: bytes, count: count))
    guard let first = input.first else { return 0 }
    if first & 1 == 0 { exerciseStream(Array(input.dropFirst())) } else { exerciseReturnPath(Array(input.dropFirst())) }
    return 0
}
