// Writing by stores through a mapping: shared memory and persistent memory.
//
// Invariants:
// - The mapping never leaves the medium, and each store to it is a guarded copy: a page that can't
//   be had (a full file system, a truncated file, a broken module) is an error.
// - When `write` returns, its stores are ordered before whatever follows on any processor, so that
//   a flush by another thread covers them. That is why each write drains, and not the flush alone: a
//   fence orders only the stores of the processor that executes it.

import CLinux
import CPMem
import Glibc
import Units

/// Copies into the mapping of a storage. Thread-safe.
struct MemoryWriter: Sendable {
    let storage: MappedStorage
    /// libpmem's flags for each copy.
    let flags: UInt32

    /// To persistent memory: flushed from the caches and drained.
    static let persistent: UInt32 = 0
    /// To memory: nothing to flush; the guarded copy itself ends with a fence.
    static let volatile: UInt32 = UInt32(PMEM_F_MEM_NOFLUSH | PMEM_F_MEM_NODRAIN)

    /// See `Medium.write`.
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        guard let source = bytes.baseAddress, bytes.count > 0 else { return }
        let length = ByteCount(bytes.count)
        try storage.checkRange(at: offset, length, "write")
        // A second try where the pages could be had after all.
        for isLast in [false, true] {
            guard let base = unsafe storage.mapping.view.base else { break }
            var fault = ck_fault()
            let result = unsafe ck_guarded_store(
                base + offset.int, source, bytes.count, pmem_memcpy, flags, &fault)
            if result == 0 { return }
            try explain(fault, at: offset, length, isLast: isLast)
        }
        throw .system(EIO, medium: storage.name, operation: "write", offset: offset, length: length)
    }

    /// Why a store faulted: the end has moved, there is no space, or the memory is broken.
    private func explain(
        _ fault: ck_fault, at offset: MediumOffset, _ length: ByteCount, isLast: Bool
    ) throws(MediumError) {
        try storage.checkCurrentRange(at: offset, length, "write")
        let isBroken = fault.signal == SIGBUS && (fault.code == BUS_MCEERR_AR || fault.code == BUS_MCEERR_AO)
        if isBroken || isLast {
            throw .system(EIO, medium: storage.name, operation: "write", offset: offset, length: length)
        }
        try reserve(at: offset, length, operation: "write")
    }

    /// See `Medium.reserve`.
    func reserve(
        at offset: MediumOffset, _ length: ByteCount, operation: String = "reserve space"
    ) throws(MediumError) {
        try storage.checkRange(at: offset, length, operation)
        guard length > .zero else { return }
        try checked(
            ck_allocate(storage.descriptor.number, offset.rawValue, length.rawValue), storage.name, operation,
            offset: offset, length: length)
    }
}
