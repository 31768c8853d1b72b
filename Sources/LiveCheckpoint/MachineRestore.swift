// A machine back from a checkpoint: what its monitor needs to build it again.
//
// Invariant: nothing is handed over that has not been verified; a checkpoint that does not fit is refused before anything is written.

import CheckpointCore
import MachineMemory
import StoreFormat
import Units

/// An open checkpoint of a machine.
public struct MachineRestore: Sendable {
    public let record: MachineRecord
    private let source: any CheckpointSource

    /// Opens a checkpoint and reads its record.
    /// - Throws: `.store` when there is no such checkpoint; `.invalidInput` when it is none of a machine; `.corrupt`, `.unsupported`: see `machineRecord`.
    public init(_ source: any CheckpointSource) throws(EngineError) {
        self.source = source
        record = try source.machineRecord()
    }

    /// Throws `.mismatch` unless the checkpoint is one of such a machine.
    public func check(_ identity: MachineIdentity) throws(EngineError) {
        guard record.hypervisor == identity.hypervisor, record.machineType == identity.machineType, record.architecture == identity.architecture else {
            throw EngineError(
                .mismatch, "it is a checkpoint of \(record.hypervisor), machine \(record.machineType) on \(record.architecture)",
                remedy: "Restore it with the hypervisor that it was taken of.", place: source.name)
        }
    }

    /// Maps new memory for each block and fills it, in the record's order.
    ///
    /// - Parameters:
    ///   - sharing: how to map it.
    ///   - pages: which pages to use.
    public func memory(sharing: GuestMemory.Sharing, pages: GuestMemory.Pages = .base) throws(EngineError) -> [GuestMemory] {
        var result: [GuestMemory] = []
        for block in record.memoryBlocks {
            let memory = try GuestMemory(block.name, byteLength: ByteCount(block.byteLength), pages: pages, sharing: sharing)
            try MemoryRestore.load(block.region, of: source, into: memory)
            result.append(memory)
        }
        return result
    }

    /// The device state, for the monitor that wrote it.
    public func deviceState() throws(EngineError) -> [UInt8] {
        try source.blob(record.deviceStateRegion, limit: ByteCount(record.deviceStateBytes))
    }

    /// Writes a disk's content through `write`, which gets pieces of up to 2 MiB and where they belong; what it does not get is zero.
    /// - Throws: `.notFound` when there is no such disk; what reading and `write` throw.
    public func disk(
        _ name: String, write: @escaping @Sendable (ByteCount, UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) {
        guard let disk = record.disks.first(where: { $0.name == name }) else {
            throw EngineError(.notFound, "the checkpoint has no disk of that name", remedy: "It has \(record.disks.map(\.name)).", place: name)
        }
        let region = try source.region(disk.region)
        unsafe try region.forEachSpanOfData { (first, data, bytes) throws(EngineError) in
            for range in data {
                let offset = (first + PageCount(range.lowerBound)).rawValue * UInt64(pageSize)
                // The last page of a disk may be a part of one.
                let count = min(UInt64(range.count * pageSize), disk.byteLength - offset)
                let start = range.lowerBound * pageSize
                unsafe try write(ByteCount(offset), UnsafeRawBufferPointer(rebasing: bytes[start..<start + Int(count)]))
            }
        }
    }
}
