// A store of this package behind the engines' protocols, and the machine record in it.

import CheckpointCore
import CheckpointStore
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// A record of a machine with one block of memory of that many pages.
func sampleRecord(pages: UInt64 = 4) -> MachineRecord {
    MachineRecord(
        engine: .external, hypervisor: "qemu", hypervisorVersion: "7.2.22", machineType: "pc-i440fx-7.2", architecture: "x86_64",
        virtualCPUs: 1,
        memoryBlocks: [
            .init(
                name: "pc.ram", region: MachineRecord.memoryRegion("pc.ram"), byteLength: pages * 4096, hostPageBytes: 4096)
        ], physicalRanges: [.init(block: "pc.ram", blockOffset: 0, physicalAddress: 0, byteLength: pages * 4096)],
        disks: [
            .init(name: "vda", region: MachineRecord.diskRegion("vda"), byteLength: 512, imageFormat: "raw", imageName: "hd.img")
        ], deviceStateRegion: MachineRecord.deviceStateRegionName, deviceStateBytes: 5, wasRunning: true, stopMicroseconds: 1200,
        takenMicroseconds: 1_700_000_000_000_000)
}

/// Puts a checkpoint with all regions that `record` names, the record as it is handed in.
func putCheckpoint(_ name: String, _ record: [UInt8]?, in data: StoreBackedDataStore) throws -> CheckpointReceipt {
    let sink = try data.begin(name, parent: nil)
    _ = try sink.addRegion("memory:pc.ram", kind: .memory, byteLength: ByteCount(4 * 4096))
    _ = try sink.addRegion("disk:vda", kind: .disk, byteLength: ByteCount(512))
    try sink.putBlob("state:devices", [1, 2, 3, 4, 5])
    if let record { try sink.putBlob("machine", record) }
    return try sink.commit()
}

func engineError(_ body: () throws -> Void) -> EngineError? {
    do { try body() } catch { return error as? EngineError }
    return nil
}

@Suite struct DataStoreTests {
    @Test func `what a sink took a source gives back, with parent, labels and zero pages`() throws {
        let place = try ScratchStore()
        let data = StoreBackedDataStore(place.store, options: WriterOptions(labels: ["host": "a"]))
        #expect(try data.latest() == nil)
        let first = try data.begin("one", parent: nil)
        #expect(first.parentID == nil)
        let page = [UInt8](repeating: 7, count: 4096)
        let region = try first.addRegion("memory:m", kind: .memory, byteLength: ByteCount(1024 * 4096))
        try unsafe page.withUnsafeBytes { bytes in
            for index in [0, 1, 600] { unsafe try region.put(page: PageIndex(index), bytes) }
        }
        try first.setLabel("why", "test")
        let receipt = try first.commit()
        #expect(receipt.newPages == PageCount(3))
        let second = try data.begin("two", parent: "one")
        #expect(second.parentID == receipt.id)
        try second.addRegion("memory:m", kind: .memory, byteLength: ByteCount(1024 * 4096))
            .putZeros(PageIndex(1)..<PageIndex(2))
        _ = try second.commit()
        #expect(try data.latest() == "two")
        #expect(try place.store.snapshot().checkpoint(named: "one").labels.map(\.key) == ["host", "why"])

        let source = try data.source("two")
        #expect(source.regions == [RegionSummary(name: "memory:m", kind: .memory, byteLength: ByteCount(1024 * 4096))])
        let reader = try source.region("memory:m")
        #expect(try reader.dataRanges() == [PageIndex(0)..<PageIndex(1), PageIndex(600)..<PageIndex(601)])
        var bytes = [UInt8](repeating: 1, count: 2 * 4096)
        try unsafe bytes.withUnsafeMutableBytes { unsafe try reader.read(pages: PageIndex(0)..<PageIndex(2), into: $0) }
        #expect(bytes == page + [UInt8](repeating: 0, count: 4096))
        let thrown = EngineError(.busy, "mine")
        let caught = engineError {
            unsafe try reader.forEachSpanOfData { (_, _, _) throws(EngineError) in throw thrown }
        }
        #expect(caught?.code == .busy)
    }

    @Test func `errors of the store come out with the store's own inside, and a cancelled sink leaves nothing`() throws {
        let place = try ScratchStore()
        let data = StoreBackedDataStore(place.store)
        #expect(engineError { _ = try data.source("none") }?.storeError?.code == .notFound)
        #expect(engineError { _ = try data.begin("a", parent: "none") }?.storeError?.code == .notFound)
        let sink = try data.begin("a", parent: nil)
        sink.cancel()
        #expect(engineError { _ = try sink.commit() }?.code == .cancelled)
        #expect(try data.latest() == nil)
        _ = try putCheckpoint("blob", nil, in: data)
        #expect(engineError { _ = try data.source("blob").blob("state:devices", limit: ByteCount(4)) }?.code == .corrupt)
        #expect(try data.source("blob").blob("state:devices", limit: ByteCount(5)) == [1, 2, 3, 4, 5])
    }

    @Test func `names of regions are allowed and different for every name of a block`() throws {
        #expect(MachineRecord.memoryRegion("/rom@etc/acpi/tables") == "memory:%2From@etc%2Facpi%2Ftables")
        let names = ["a/b", "a%2Fb", "a=b", "a\u{1}b", "ä", "."].map(MachineRecord.memoryRegion)
        #expect(Set(names).count == names.count)
        for name in names { try Names.check(name) }
    }

    @Test func `the machine record comes back as it was put`() throws {
        let place = try ScratchStore()
        let data = StoreBackedDataStore(place.store)
        let sink = try data.begin("vm", parent: nil)
        let record = sampleRecord()
        for region in [("memory:pc.ram", RegionKind.memory, 4 * 4096), ("disk:vda", .disk, 512)] {
            _ = try sink.addRegion(region.0, kind: region.1, byteLength: ByteCount(region.2))
        }
        try sink.putBlob("state:devices", [1, 2, 3, 4, 5])
        try sink.put(record)
        _ = try sink.commit()
        #expect(try data.source("vm").machineRecord() == record)
    }

    @Test func `a record that is wrong, newer or missing is refused with its reason`() throws {
        let place = try ScratchStore()
        let data = StoreBackedDataStore(place.store)
        let right = try JSONSerialization.jsonObject(with: JSONEncoder().encode(sampleRecord())) as! [String: Any]
        func refusal(_ change: (inout [String: Any]) -> Void) throws -> EngineError? {
            var wrong = right
            change(&wrong)
            let name = UUID().uuidString
            _ = try putCheckpoint(name, Array(try JSONSerialization.data(withJSONObject: wrong)), in: data)
            return engineError { _ = try data.source(name).machineRecord() }
        }
        func block(_ key: String, _ value: Any) -> (inout [String: Any]) -> Void {
            { record in
                var blocks = record["memoryBlocks"] as! [[String: Any]]
                blocks[0][key] = value
                record["memoryBlocks"] = blocks
            }
        }
        #expect(try refusal { _ in } == nil)
        #expect(try refusal { $0["version"] = 2 }?.code == .unsupported)
        #expect(try refusal { $0["version"] = 0 }?.code == .corrupt)
        #expect(try refusal { $0["memoryBlocks"] = [Any]() }?.code == .corrupt)
        #expect(try refusal { $0["virtualCPUs"] = 0 }?.code == .corrupt)
        #expect(try refusal { $0["deviceStateBytes"] = 6 }?.code == .corrupt)
        #expect(try refusal { $0["deviceStateRegion"] = "disk:vda" }?.code == .corrupt)
        #expect(try refusal { $0["machineType"] = nil }?.code == .corrupt)
        for change in [
            block("byteLength", 5 * 4096), block("byteLength", 100), block("byteLength", -1), block("hostPageBytes", 3000),
            block("hostPageBytes", 1 << 21), block("region", "memory:other"), block("name", ""),
        ] { #expect(try refusal(change)?.code == .corrupt) }
        _ = try putCheckpoint("no-json", [1, 2, 3], in: data)
        #expect(engineError { _ = try data.source("no-json").machineRecord() }?.code == .corrupt)
        _ = try putCheckpoint("plain", nil, in: data)
        let plain = engineError { _ = try data.source("plain").machineRecord() }
        #expect(plain?.code == .invalidInput)
        #expect(plain?.reason.contains("no checkpoint of a virtual machine") == true)
    }
}
