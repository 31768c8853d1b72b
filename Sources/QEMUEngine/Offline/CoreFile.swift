// An ELF core of a checkpoint's machine: memory by guest-physical address, and the registers of its CPUs.
//
// Invariants:
// - Each memory block is in the file once, at a multiple of 4096 bytes; segments refer to parts of it. Zero pages are holes.
// - A segment's virtual address is its guest-physical one, but for those of the guest kernel's own mappings.

import CheckpointCore
import MigrationStream
import Units

/// The layout of a core, and the way to write it.
public struct CoreFile: Sendable {
    /// A memory block's place in the file.
    private struct Placed: Sendable {
        var block: MachineRecord.MemoryBlock
        var fileOffset: UInt64
    }

    /// A part of a memory block as debuggers see it.
    struct Segment: Sendable, Equatable {
        var virtualAddress: UInt64
        var memory: MachineRecord.PhysicalRange
    }

    /// The whole file's length; most of it holes, if memory is mostly zero.
    public let byteLength: ByteCount
    /// How many CPUs the core has as threads.
    public let virtualCPUs: Int
    /// Segments of memory.
    public let segmentCount: Int
    /// True when the checkpoint does not know where its memory was in the guest's address space: then addresses count from the
    /// start of the largest block.
    public let hasAssumedAddresses: Bool
    private let head: [UInt8]
    private let placed: [Placed]
    private let source: any CheckpointSource
    private static let headUnit: UInt64 = 4096
    /// Segments that an ELF header can count.
    static let maximumSegments = 65_000

    /// Lays a core out.
    /// - Parameter paging: true to have the guest kernel's virtual addresses in it too, by walking its page tables.
    /// - Throws: `.invalidInput` when it is no machine's checkpoint; `.unsupported` when the machine is none of x86-64 or its
    ///   registers can't be found; `.corrupt`; what the store throws.
    public init(_ source: any CheckpointSource, paging: Bool) throws(EngineError) {
        let record = try source.machineRecord()
        guard record.architecture == "x86_64" else {
            throw EngineError(
                .unsupported, "cores are made of x86_64 machines, and this one is \(record.architecture)",
                remedy: "`--format raw` exports memory and disks of any machine.")
        }
        let state = try DeviceState(try source.blob(record.deviceStateRegion, limit: StreamParser.defaultDeviceStateLimit))
        let cpus = try VirtualCPU.all(in: state)
        let memory = try GuestMemoryMap(source, record)
        var segments = memory.ranges.map { Segment(virtualAddress: $0.physicalAddress, memory: $0) }
        if paging { segments += try PageTables.kernelSegments(cpus, memory) }
        guard segments.count <= Self.maximumSegments else {
            throw EngineError(
                .unsupported, "the guest's kernel has \(segments.count) mappings, more than a core can list",
                remedy: "Export without its mappings.")
        }
        self.source = source
        let notes = CoreNotes.encoded(cpus)
        let headLength = UInt64(64 + 56 * (segments.count + 1) + notes.count)
        var end = (headLength + Self.headUnit - 1) / Self.headUnit * Self.headUnit
        var placed: [Placed] = []
        for block in record.memoryBlocks where memory.ranges.contains(where: { $0.block == block.name }) {
            placed.append(Placed(block: block, fileOffset: end))
            end += PageCount(covering: ByteCount(block.byteLength)).bytes.rawValue
        }
        self.placed = placed
        byteLength = ByteCount(end)
        virtualCPUs = cpus.count
        segmentCount = segments.count
        hasAssumedAddresses = record.physicalRanges.isEmpty
        let starts = Dictionary(uniqueKeysWithValues: placed.map { ($0.block.name, $0.fileOffset) })
        head = Self.head(notes: notes, segments: segments) { starts[$0.block]! + $0.blockOffset }
    }

    /// Bytes of memory that `write` goes through.
    public var memoryBytes: ByteCount { placed.reduce(.zero) { $0 + ByteCount($1.block.byteLength) } }

    /// The ELF header, the program headers and the notes.
    private static func head(
        notes: [UInt8], segments: [Segment], fileOffset: (MachineRecord.PhysicalRange) -> UInt64
    ) -> [UInt8] {
        var bytes = CoreBytes()
        // 64 bits, little-endian, version 1; a core of x86-64; program headers of 56 bytes from byte 64 on, no sections.
        bytes.put([0x7f] + Array("ELF".utf8) + [2, 1, 1, 0])
        bytes.put(zeros: 8)
        for value in [UInt16(4), 62] { bytes.put(value) }
        bytes.put(UInt32(1))
        for value in [UInt64(0), 64, 0] { bytes.put(value) }
        bytes.put(UInt32(0))
        for value in [UInt16(64), 56, UInt16(segments.count + 1), 0, 0, 0] { bytes.put(value) }
        let notesOffset = UInt64(64 + 56 * (segments.count + 1))
        put(&bytes, type: 4, flags: 0, offset: notesOffset, virtual: 0, physical: 0, length: UInt64(notes.count))
        for segment in segments {
            put(
                &bytes, type: 1, flags: 7, offset: fileOffset(segment.memory), virtual: segment.virtualAddress,
                physical: segment.memory.physicalAddress, length: segment.memory.byteLength)
        }
        bytes.put(notes)
        return bytes.bytes
    }

    private static func put(
        _ bytes: inout CoreBytes, type: UInt32, flags: UInt32, offset: UInt64, virtual: UInt64, physical: UInt64, length: UInt64
    ) {
        bytes.put(type)
        bytes.put(flags)
        for value in [offset, virtual, physical, length, length, 0] { bytes.put(value) }
    }

    /// Writes everything that is not zero; the file has its length already, and is full of zeros.
    /// - Parameters:
    ///   - progress: called with the bytes of memory gone through, by several threads.
    ///   - put: writes bytes at a file offset; called by several threads.
    /// - Throws: what reading and `put` throw; the file is not complete then.
    public func write(
        progress: @escaping @Sendable (ByteCount) -> Void,
        _ put: @escaping @Sendable (UnsafeRawBufferPointer, UInt64) throws(EngineError) -> Void
    ) throws(EngineError) {
        let failure: EngineError? = unsafe head.withUnsafeBytes { bytes in
            do throws(EngineError) {
                unsafe try put(bytes, 0)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
        var before = ByteCount.zero
        for placed in placed {
            let (start, done) = (placed.fileOffset, before)
            unsafe try source.region(placed.block.region).forEachSpanOfData { (first, data, bytes) throws(EngineError) in
                for pages in data {
                    let piece = unsafe UnsafeRawBufferPointer(
                        rebasing: bytes[(pages.lowerBound * pageSize)..<(pages.upperBound * pageSize)])
                    unsafe try put(piece, start + (first + PageCount(pages.lowerBound)).rawValue * UInt64(pageSize))
                }
                progress(done + PageCount(first.rawValue).bytes)
            }
            before += ByteCount(placed.block.byteLength)
        }
        progress(before)
    }
}
