// Memory back from a checkpoint, into memory of this process.
//
// Invariants:
// - Every byte has been verified before it is written to the target.
// - On return the memory is the checkpoint's, all of it; when this throws, its content is undefined, and the machine must not use it.

import CheckpointCore
import Glibc
import MachineMemory
import Units

/// Brings memory back.
public enum MemoryRestore {
    /// Fills memory with a region, on several threads. Pages that are zero in the checkpoint are given back to the system where that can be done.
    ///
    /// - Parameter source: an open checkpoint; any engine's, the regions have the same form.
    /// - Throws: `.mismatch` when the memory has another length; what reading throws.
    public static func load(_ region: String, of source: any CheckpointSource, into memory: GuestMemory) throws(EngineError) {
        let region = try source.region(region)
        guard region.byteLength == memory.byteLength else {
            throw EngineError(
                .mismatch, "the checkpoint has \(region.byteLength) bytes of it, the memory \(memory.byteLength)",
                remedy: "Map memory of the checkpoint's length.", place: memory.name)
        }
        try clear(memory)
        unsafe try region.forEachSpanOfData { (first, data, bytes) throws(EngineError) in
            for range in data {
                let pages = first + PageCount(range.lowerBound)..<first + PageCount(range.upperBound)
                let from = unsafe UnsafeRawBufferPointer(rebasing: bytes[range.lowerBound * pageSize..<range.upperBound * pageSize])
                unsafe memory.bytes(of: pages).copyMemory(from: from)
            }
        }
    }

    private static func clear(_ memory: GuestMemory) throws(EngineError) {
        // Private memory comes back as zeros; shared memory is given back to its file by a hole. Where neither goes, zeros are written.
        let advice = memory.sharing == .anonymous ? MADV_DONTNEED : MADV_REMOVE
        if unsafe madvise(memory.bytes.baseAddress!, memory.bytes.count, advice) == 0 { return }
        unsafe memset(memory.bytes.baseAddress!, 0, memory.bytes.count)
    }
}
