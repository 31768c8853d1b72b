// The guest's physical memory, read by address.
//
// Invariant: every range lies within its block, as a machine record that was checked has it.

import CheckpointCore
import Units

/// A checkpoint's memory by guest-physical address.
struct GuestMemoryMap {
    /// By address.
    let ranges: [MachineRecord.PhysicalRange]
    private let regions: [String: any RegionSource]

    /// - Throws: `.corrupt` when there is no memory; what the store throws.
    init(_ source: any CheckpointSource, _ record: MachineRecord) throws(EngineError) {
        if record.physicalRanges.isEmpty {
            guard let largest = record.memoryBlocks.max(by: { $0.byteLength < $1.byteLength }) else {
                throw EngineError(.corrupt, "the checkpoint has no memory", remedy: "Export another checkpoint.", place: source.name)
            }
            ranges = [
                MachineRecord.PhysicalRange(
                    block: largest.name, blockOffset: 0, physicalAddress: 0, byteLength: largest.byteLength)
            ]
        } else {
            ranges = record.physicalRanges.sorted { $0.physicalAddress < $1.physicalAddress }
        }
        var regions: [String: any RegionSource] = [:]
        for block in record.memoryBlocks { regions[block.name] = try source.region(block.region) }
        self.regions = regions
    }

    /// The range that `address` is in; nil where there is no memory.
    func range(at address: UInt64) -> MachineRecord.PhysicalRange? {
        var (low, high) = (0, ranges.count)
        while low < high {
            let middle = (low + high) / 2
            if ranges[middle].physicalAddress <= address { low = middle + 1 } else { high = middle }
        }
        guard low > 0, address - ranges[low - 1].physicalAddress < ranges[low - 1].byteLength else { return nil }
        return ranges[low - 1]
    }

    /// The 512 numbers of the page at `address`, a multiple of 4096; nil where there is no memory.
    func words(at address: UInt64) throws(EngineError) -> [UInt64]? {
        guard let range = range(at: address), let region = regions[range.block] else { return nil }
        let offset = range.blockOffset + (address - range.physicalAddress)
        guard offset % UInt64(pageSize) == 0 else { return nil }
        let page = PageIndex(offset / UInt64(pageSize))
        var words = [UInt64](repeating: 0, count: pageSize / 8)
        let failure: EngineError? = unsafe words.withUnsafeMutableBytes { bytes in
            do throws(EngineError) {
                unsafe try region.read(pages: page..<page + PageCount(1), into: bytes)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
        return words.map { UInt64(littleEndian: $0) }
    }
}
