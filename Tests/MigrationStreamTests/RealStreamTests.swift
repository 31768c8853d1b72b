// Streams that QEMU made, and streams that QEMU loads.

import CheckpointCore
import Foundation
import MigrationStream
import Testing
import Units

/// The memory of a stream: the last content of each page, by block.
private struct Memory: StreamHandler {
    var machineType = ""
    var capabilities: [String] = []
    var blocks: [StreamRAMBlock] = []
    var pages: [[PageIndex: [UInt8]]] = []
    var device: [UInt8] = []

    mutating func configuration(machineType: String, capabilities: [String]) {
        (self.machineType, self.capabilities) = (machineType, capabilities)
    }
    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) {
        (self.blocks, pages) = (blocks, blocks.map { _ in [:] })
    }
    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) { pages[block][page] = unsafe Array(bytes) }
    mutating func zeroPage(block: Int, _ page: PageIndex) { pages[block][page] = [] }
    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) { unsafe device += bytes }

    init(_ stream: [UInt8], windowBytes: Int = 64 << 10) throws {
        var parser = StreamParser()
        var (start, consumed) = (0, 1)
        while start < stream.count {
            let end = min(stream.count, start + windowBytes)
            consumed = unsafe try stream[start..<end].withUnsafeBytes { unsafe try parser.feed($0, &self) }
            guard consumed > 0 else { break }
            start += consumed
        }
        try parser.finish()
    }

    /// Writes one page or zeros.
    func write(_ page: PageIndex, ofBlock block: Int, to writer: inout StreamWriter) {
        let bytes = pages[block][page] ?? []
        if bytes.isEmpty {
            writer.zeroPages(block: block, page..<(page + PageCount(1)))
        } else {
            unsafe bytes.withUnsafeBytes { unsafe writer.pages(block: block, at: page, $0) }
        }
    }
}

@Test func `QEMU's own stream is parsed whole, and one of ours from it runs in another QEMU under other block names`() throws {
    try withFolder { folder in
        let memory = try Memory(try realStream(in: folder))
        #expect(memory.machineType.hasPrefix("pc-i440fx-"))
        #expect(memory.blocks.first == StreamRAMBlock(name: "pc.ram", byteLength: .mebibytes(64)))
        for (block, pages) in zip(memory.blocks, memory.pages) {
            #expect(pages.count == PageCount(covering: block.byteLength).int, "\(block.name)")
        }
        var device = try DeviceState(memory.device)
        #expect(device.sections.contains { $0.name == "cpu" && $0.instance == 1 })
        #expect(device.sections.last?.name == "globalstate")
        #expect(try device.runState() == "paused")
        let json = try #require(device.description)
        let described = try JSONSerialization.jsonObject(with: Data(device.bytes[json])) as? [String: Any]
        #expect((described?["devices"] as? [Any])?.count == device.sections.count)

        try device.setRunState("running")
        var writer = StreamWriter()
        writer.header(machineType: memory.machineType)
        writer.ramBlocks(memory.blocks.map { StreamRAMBlock(name: $0.name == "pc.ram" ? "mem0" : $0.name, byteLength: $0.byteLength) })
        for block in memory.blocks.indices.reversed() {
            for page in memory.pages[block].keys.sorted().reversed() { memory.write(page, ofBlock: block, to: &writer) }
        }
        writer.endRAM()
        writer.deviceState(device.bytesWithoutDescription)
        let file = folder.appendingPathComponent("ours").path
        try Data(writer.takeBytes()).write(to: URL(fileURLWithPath: file))
        let machine = try TinyQEMU([
            "-object", "memory-backend-ram,id=mem0,size=64M", "-machine", "memory-backend=mem0", "-incoming", "exec:cat \(file)",
        ])
        defer { machine.stop() }
        try machine.wait("query-status", until: "running")
    }
}

@Test func `a stream without shared memory carries only the other blocks`() throws {
    try withFolder { folder in
        let stream = try realStream(
            in: folder, ["-object", "memory-backend-memfd,id=mem0,size=64M,share=on", "-machine", "memory-backend=mem0"],
            setup: [
                "{\"execute\": \"migrate-set-capabilities\", \"arguments\": {\"capabilities\": [{\"capability\": \"x-ignore-shared\", \"state\": true}]}}"
            ])
        let memory = try Memory(stream, windowBytes: StreamParser.minimumWindowBytes)
        #expect(memory.capabilities == ["x-ignore-shared"])
        #expect(memory.blocks.first?.name == "mem0" && memory.blocks.first?.guestPhysicalAddress == 0)
        #expect(memory.pages.first?.isEmpty == true)
        #expect(memory.pages.dropFirst().allSatisfy { !$0.isEmpty })
        #expect(try DeviceState(memory.device).sections.isEmpty == false)
    }
}

@Test func `a QEMU runs before its memory comes, asks for it over the return path, and finishes`() throws {
    try withFolder { folder in
        let memory = try Memory(try realStream(in: folder))
        var device = try DeviceState(memory.device)
        try device.setRunState("running")
        let path = folder.appendingPathComponent("incoming").path
        let machine = try TinyQEMU(["-global", "migration.x-postcopy-ram=on", "-incoming", "unix:\(path)"])
        defer { machine.stop() }
        let connection = try connect(path)
        defer { close(connection) }
        let requests = try servePostcopy(memory, device, over: connection)
        #expect(requests > 0)
        try machine.wait("query-status", until: "running")
        try machine.wait("query-migrate", until: "completed")
    }
}

/// The source's side of the conversation: nothing is sent unasked until the destination has loaded its devices.
/// - Returns: how many requests there were.
private func servePostcopy(_ memory: Memory, _ device: DeviceState, over connection: Int32) throws -> Int {
    var writer = StreamWriter()
    writer.header(machineType: memory.machineType)
    writer.openReturnPath()
    writer.ping(1)
    writer.adviseOfPostcopy(pageSizes: 4096)
    writer.ramBlocks(memory.blocks)
    writer.discard(block: 0, PageIndex(0)..<PageIndex(1))
    writer.package(device.sectionBytes, ping: 3)
    var missing = memory.pages.map { Set($0.keys) }
    var (parser, requests, isOver) = (ReturnPathParser(blocks: memory.blocks), 0, false)
    var window: [UInt8] = []
    while !isOver {
        unsafe try writer.drain { (bytes) throws(EngineError) in unsafe try send(bytes, to: connection) }
        window += try receive(from: connection)
        let consumed = unsafe try window.withUnsafeBytes { bytes in
            unsafe try parser.feed(bytes) { (message) throws(EngineError) in
                switch message {
                case .requestPages(let block, let pages):
                    requests += 1
                    answer(block, pages, memory, &missing, &writer)
                    // After some requests of the running machine: all the rest.
                    guard requests == 3 else { break }
                    for block in missing.indices {
                        for page in missing[block].sorted() { memory.write(page, ofBlock: block, to: &writer) }
                        missing[block] = []
                    }
                    writer.endRAM()
                    writer.endOfStream()
                case .shut(let status):
                    if status != 0 { throw EngineError(.refused, "status \(status)") }
                    isOver = true
                default: break
                }
            }
        }
        window.removeFirst(consumed)
    }
    try parser.finish()
    return requests
}

private func answer(
    _ block: Int, _ pages: Range<PageIndex>, _ memory: Memory, _ missing: inout [Set<PageIndex>], _ writer: inout StreamWriter
) {
    var page = pages.lowerBound
    while page < pages.upperBound {
        if missing[block].remove(page) != nil { memory.write(page, ofBlock: block, to: &writer) }
        page = page + PageCount(1)
    }
    writer.endSection()
}

private func connect(_ path: String) throws -> Int32 {
    let descriptor = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
    var address = sockaddr_un()
    address.sun_family = sa_family_t(AF_UNIX)
    unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
    let status = unsafe withUnsafePointer(to: &address) {
        unsafe $0.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            unsafe Glibc.connect(descriptor, $0, socklen_t(MemoryLayout<sockaddr_un>.size))
        }
    }
    guard status == 0 else { throw EngineError(system: "connect", errno, place: path) }
    return descriptor
}

private func send(_ bytes: UnsafeRawBufferPointer, to connection: Int32) throws(EngineError) {
    var rest = unsafe bytes
    while unsafe !rest.isEmpty {
        let count = unsafe write(connection, rest.baseAddress, rest.count)
        guard count > 0 else { throw EngineError(system: "send", errno) }
        unsafe rest = unsafe UnsafeRawBufferPointer(rebasing: rest[count...])
    }
}

private func receive(from connection: Int32) throws -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: 4096)
    let count = unsafe read(connection, &bytes, bytes.count)
    guard count > 0 else { throw EngineError(system: "receive", errno) }
    return Array(bytes[..<count])
}
