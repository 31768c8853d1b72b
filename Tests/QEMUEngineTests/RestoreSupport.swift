// Checkpoints for the tests of restoring: taken from a stopped guest by an ordinary migration, without any engine.

import CLinux
import CheckpointCore
import CheckpointStore
import Foundation
import Media
import MigrationStream
import QEMUTesting
import QMP
import Testing
import Threading
import Units

/// Something that must not be.
struct RestoreTrouble: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// Runs a test's body, which waits, on a thread of its own.
func blocking(_ body: @escaping @Sendable () throws -> Void) throws {
    let result = Lock<Result<Void, any Error>?>(nil)
    let thread = PlainThread {
        let outcome = Result { try body() }
        result.withLock { $0 = outcome }
        result.wake()
    }
    let outcome = result.waitFor(milliseconds: 280_000) { $0 }
    try #require(outcome != nil, "it did not come to an end")
    thread?.join()
    try outcome?.get()
}

/// Takes checkpoints of guests.
enum HandCheckpoint {
    /// Stops the guest, stores it under `name`, and leaves it stopped.
    static func take(
        _ guest: Guest, _ name: String, in store: CommandStore, disks: [String] = [], wasRunning: Bool = true
    ) throws {
        let qmp = try guest.monitor()
        defer { qmp.close() }
        try qmp.execute("stop")
        let stream = try migrate(qmp, to: guest.machine.file("stream"))
        let opened = try CheckpointStore.open(try openMedium(try Locator(store.path), access: .readWrite))
        defer { opened.close() }
        let sink = try StoreBackedDataStore(opened).begin(name, parent: nil)
        var handler = StoringHandler(sink)
        try parse(stream, &handler)
        try finish(handler, sink, guest, qmp, disks: disks, wasRunning: wasRunning)
    }

    /// The whole stream, in a file that QEMU holds itself.
    private static func migrate(_ qmp: QMPClient, to path: String) throws -> Data {
        let number = unsafe ck_open(path, CK_READ_WRITE.rawValue | CK_CREATE.rawValue)
        guard number >= 0 else { throw RestoreTrouble("\(path): error \(number)") }
        defer {
            ck_close(number)
            try? FileManager.default.removeItem(atPath: path)
        }
        try qmp.execute("migrate-set-parameters", ["max-bandwidth": .integer(1 << 40)])
        try qmp.pass(descriptor: number, named: "checkpoint")
        try qmp.execute("migrate", ["uri": "fd:checkpoint"])
        for _ in 0..<1200 {
            switch try qmp.execute("query-migrate")["status"]?.string {
            case "completed": return try Data(contentsOf: URL(fileURLWithPath: path))
            case "failed": throw RestoreTrouble("the migration failed")
            default: usleep(50_000)
            }
        }
        throw RestoreTrouble("the migration did not come to an end")
    }

    private static func parse(_ stream: Data, _ handler: inout StoringHandler) throws {
        var parser = StreamParser()
        var position = 0
        while position < stream.count {
            let end = min(stream.count, position + 4 << 20)
            let window = [UInt8](stream[position..<end])
            var failure: EngineError?
            var consumed = 0
            unsafe window.withUnsafeBytes { bytes in
                do throws(EngineError) { unsafe consumed = try parser.feed(bytes, &handler) } catch { failure = error }
            }
            if let failure { throw failure }
            guard consumed > 0 else { throw RestoreTrouble("the parser makes no progress at \(position)") }
            position += consumed
        }
        try parser.finish()
    }

    private static func finish(
        _ handler: StoringHandler, _ sink: any CheckpointSink, _ guest: Guest, _ qmp: QMPClient, disks: [String], wasRunning: Bool
    ) throws {
        var state = try DeviceState(handler.state)
        try state.setRunState(wasRunning ? "running" : "paused")
        try sink.putBlob(MachineRecord.deviceStateRegionName, state.bytes)
        var records: [MachineRecord.Disk] = []
        for (index, path) in disks.enumerated() {
            let name = "disk\(index)"
            let bytes = [UInt8](try Data(contentsOf: URL(fileURLWithPath: path)))
            let region = try sink.addRegion(MachineRecord.diskRegion(name), kind: .disk, byteLength: ByteCount(bytes.count))
            var failure: EngineError?
            unsafe bytes.withUnsafeBytes { buffer in
                do throws(EngineError) { unsafe try region.write(buffer, at: PageIndex(UInt64(0)), isStable: true) } catch { failure = error }
            }
            if let failure { throw failure }
            records.append(
                .init(
                    name: name, region: MachineRecord.diskRegion(name), byteLength: UInt64(bytes.count), imageFormat: "raw",
                    imageName: path))
        }
        try sink.put(
            MachineRecord(
                engine: .paused, hypervisor: "qemu", hypervisorVersion: qmp.version, machineType: handler.machineType,
                architecture: "x86_64", virtualCPUs: guest.machine.options.virtualCPUs,
                memoryBlocks: handler.blocks.map {
                    .init(
                        name: $0.name, region: MachineRecord.memoryRegion($0.name), byteLength: $0.byteLength.rawValue,
                        hostPageBytes: $0.pageBytes ?? 4096)
                }, physicalRanges: [], disks: records, deviceStateRegion: MachineRecord.deviceStateRegionName,
                deviceStateBytes: UInt64(state.bytes.count), wasRunning: wasRunning, stopMicroseconds: nil,
                takenMicroseconds: 1_700_000_000_000_000))
        _ = try sink.commit()
    }
}

/// Puts what a stream has into a checkpoint.
private struct StoringHandler: StreamHandler {
    let sink: any CheckpointSink
    var machineType = ""
    var blocks: [StreamRAMBlock] = []
    var regions: [any RegionSink] = []
    var state: [UInt8] = []

    init(_ sink: any CheckpointSink) { self.sink = sink }

    mutating func configuration(machineType: String, capabilities: [String]) throws(EngineError) { self.machineType = machineType }

    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) throws(EngineError) {
        self.blocks = blocks
        for block in blocks {
            regions.append(
                try sink.addRegion(MachineRecord.memoryRegion(block.name), kind: .memory, byteLength: block.byteLength))
        }
    }

    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        unsafe try regions[block].put(page: page, bytes)
    }

    mutating func zeroPage(block: Int, _ page: PageIndex) throws(EngineError) {}

    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) throws(EngineError) { unsafe state += bytes }
}
