// The machine record as a region of a checkpoint: written, read back, and judged before anything is done with it.
//
// Invariant: a record that `machineRecord` returns agrees with itself and with the regions of its checkpoint.

import CheckpointStore
import FoundationEssentials
import StoreFormat
import Units

extension CheckpointSink {
    /// Puts the record, as the checkpoint's region "machine".
    /// - Throws: `.invalidInput` when the record contradicts itself; what storing throws.
    public func put(_ record: MachineRecord) throws(EngineError) {
        do throws(EngineError) { try record.check() } catch {
            throw EngineError(.invalidInput, error.reason, place: MachineRecord.regionName)
        }
        try putBlob(MachineRecord.regionName, try record.encoded())
    }
}

extension CheckpointSource {
    /// What the checkpoint says of its machine.
    /// - Throws: `.invalidInput` when it is no checkpoint of a virtual machine, `.unsupported` when a newer version wrote it,
    ///   `.corrupt` when the record contradicts itself or the checkpoint's regions; what the store throws.
    public func machineRecord() throws(EngineError) -> MachineRecord {
        let regions = Dictionary(regions.map { (Array($0.name.utf8), $0) }) { first, _ in first }
        guard regions[Array(MachineRecord.regionName.utf8)] != nil else {
            throw EngineError(
                .invalidInput, "this is no checkpoint of a virtual machine",
                remedy: "`ckstore restore` writes its regions to files.", place: name)
        }
        let record = try MachineRecord(decoding: try blob(MachineRecord.regionName, limit: MachineRecord.maximumBytes))
        try record.check()
        for (region, kind, byteLength) in record.expectedRegions {
            guard let found = regions[Array(region.utf8)] else {
                throw MachineRecord.corrupt("it names the region \(region), which the checkpoint has not")
            }
            guard found.kind == kind, found.byteLength.rawValue == byteLength else {
                throw MachineRecord.corrupt(
                    "it says that region \(region) is \(kind) of \(byteLength) bytes; it is \(found.kind) of \(found.byteLength)")
            }
        }
        return record
    }
}

extension MachineRecord {
    /// The longest record that is read or written.
    public static let maximumBytes = ByteCount.mebibytes(16)
    /// The largest number that every JSON reader reads right.
    private static let maximumNumber = UInt64(1) << 53
    /// The longest name of a memory block or disk, in bytes: what QEMU's stream can say.
    private static let maximumNameBytes = 255

    private struct Versioned: Decodable { var version: Int }

    static func corrupt(_ reason: String) -> EngineError {
        EngineError(
            .corrupt, "the machine record is wrong: \(reason)", remedy: "Run `ckstore verify`; use another checkpoint.",
            place: regionName)
    }

    /// The record as JSON, its keys in order.
    func encoded() throws(EngineError) -> [UInt8] {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .prettyPrinted, .withoutEscapingSlashes]
        let data: Data
        do { data = try encoder.encode(self) } catch {
            preconditionFailure("a machine record has nothing that JSON can't say: \(error)")
        }
        guard data.count <= Self.maximumBytes.int else {
            throw EngineError(.invalidInput, "the machine record has \(data.count) bytes, at most \(Self.maximumBytes) are allowed")
        }
        return Array(data)
    }

    /// Reads a record; `check` is the caller's.
    init(decoding bytes: [UInt8]) throws(EngineError) {
        let data = Data(bytes)
        let version: Int
        do { version = try JSONDecoder().decode(Versioned.self, from: data).version } catch {
            throw Self.corrupt("it is no JSON object with a version")
        }
        guard version <= Self.currentVersion else {
            throw EngineError(
                .unsupported, "the machine record has version \(version), this program knows \(Self.currentVersion)",
                remedy: "Use a newer ckstore.", place: Self.regionName)
        }
        do { self = try JSONDecoder().decode(MachineRecord.self, from: data) } catch {
            throw Self.corrupt("\(error)")
        }
    }

    /// Every region that the record names, with its kind and length.
    var expectedRegions: [(region: String, kind: RegionKind, byteLength: UInt64)] {
        memoryBlocks.map { ($0.region, .memory, $0.byteLength) } + disks.map { ($0.region, .disk, $0.byteLength) }
            + [(deviceStateRegion, .state, deviceStateBytes)]
    }

    /// Throws `.corrupt` where the record contradicts itself.
    func check() throws(EngineError) {
        guard version >= 1 else { throw Self.corrupt("version \(version)") }
        guard !machineType.isEmpty, !hypervisor.isEmpty else { throw Self.corrupt("no machine type or hypervisor") }
        guard virtualCPUs >= 1, virtualCPUs <= 65536 else { throw Self.corrupt("\(virtualCPUs) virtual CPUs") }
        guard !memoryBlocks.isEmpty else { throw Self.corrupt("no memory") }
        for block in memoryBlocks { try check(block) }
        for disk in disks {
            try Self.checkName(disk.name)
            guard disk.byteLength <= Self.maximumNumber else { throw Self.corrupt("disk \(disk.name) of \(disk.byteLength) bytes") }
        }
        try Self.checkUnique(memoryBlocks.map(\.name), "memory block")
        try Self.checkUnique(disks.map(\.name), "disk")
        try Self.checkUnique(expectedRegions.map(\.region), "region")
        for range in physicalRanges { try check(range) }
        guard deviceStateBytes > 0, deviceStateBytes <= Self.maximumNumber else {
            throw Self.corrupt("device state of \(deviceStateBytes) bytes")
        }
        guard (stopMicroseconds ?? 0) <= Self.maximumNumber, takenMicroseconds <= Self.maximumNumber else {
            throw Self.corrupt("times of more than 53 bits")
        }
    }

    private func check(_ block: MemoryBlock) throws(EngineError) {
        try Self.checkName(block.name)
        let page = block.hostPageBytes
        guard page >= UInt64(pageSize), page <= 1 << 40, page & (page - 1) == 0 else {
            throw Self.corrupt("memory block \(block.name) has host pages of \(page) bytes")
        }
        guard block.byteLength > 0, block.byteLength <= Self.maximumNumber, block.byteLength % page == 0 else {
            throw Self.corrupt("memory block \(block.name) has \(block.byteLength) bytes, no whole host pages of \(page)")
        }
    }

    private func check(_ range: PhysicalRange) throws(EngineError) {
        guard let block = memoryBlocks.first(where: { Names.equal($0.name, range.block) }) else {
            throw Self.corrupt("a physical range of \(range.block), which is no memory block")
        }
        guard range.byteLength > 0, range.byteLength <= block.byteLength, range.blockOffset <= block.byteLength - range.byteLength,
            range.physicalAddress <= Self.maximumNumber - range.byteLength
        else { throw Self.corrupt("a physical range of \(range.block) that reaches beyond it") }
    }

    private static func checkName(_ name: String) throws(EngineError) {
        guard (1...maximumNameBytes).contains(name.utf8.count) else {
            throw corrupt("a name of \(name.utf8.count) bytes, 1 to \(maximumNameBytes) allowed")
        }
    }

    private static func checkUnique(_ names: [String], _ what: String) throws(EngineError) {
        var seen: Set<[UInt8]> = []
        for name in names where !seen.insert(Array(name.utf8)).inserted { throw corrupt("it names the \(what) \(name) twice") }
    }
}
