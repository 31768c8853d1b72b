// What a machine asks of a disk.
//
// Invariant: nothing here is trusted: numbers come from a guest and are checked when a request is submitted.

import CheckpointCore
import MachineMemory
import Units

/// A piece of a machine's memory that a request reads from or writes to.
public struct GuestBuffer: Sendable {
    public let memory: GuestMemory
    /// From the start of the memory, in bytes; any alignment.
    public let offset: ByteCount
    /// A multiple of 512.
    public let byteCount: ByteCount

    public init(_ memory: GuestMemory, offset: ByteCount, byteCount: ByteCount) {
        self.memory = memory
        self.offset = offset
        self.byteCount = byteCount
    }

    /// The pages that it touches; at least one. It must lie within the memory.
    public var pages: Range<PageIndex> {
        PageIndex(offset.rawValue / UInt64(pageSize))..<PageIndex((offset.rawValue + byteCount.rawValue - 1) / UInt64(pageSize) + 1)
    }

    /// The same, one by one.
    public var eachPage: some Sequence<PageIndex> { (pages.lowerBound.rawValue..<pages.upperBound.rawValue).lazy.map { PageIndex($0) } }

    /// The part of the buffer that lies in a page, counted from the buffer's start; empty when none does.
    public func part(in page: PageIndex) -> Range<Int> {
        let start = page.int * pageSize - offset.int
        return (start..<start + pageSize).clamped(to: 0..<byteCount.int)
    }

    /// The bytes as devices see them.
    var deviceBytes: TransferBytes {
        unsafe TransferBytes(
            UnsafeMutableRawBufferPointer(rebasing: memory.deviceBytes[offset.int..<offset.int + byteCount.int]), owner: memory)
    }

    var isWithinMemory: Bool {
        let (end, overflow) = offset.rawValue.addingReportingOverflow(byteCount.rawValue)
        return !overflow && end <= memory.byteLength.rawValue
    }
}

/// What a request does.
public enum DiskOperation: String, Sendable, CaseIterable {
    case read, write, flush
}

/// A request to a disk.
public struct DiskRequest: Sendable {
    public var operation: DiskOperation
    /// A multiple of 512; without meaning for a flush.
    public var offset: DiskOffset
    /// Where read bytes go and written bytes come from; nil for a flush. Its owner leaves it alone until the request is completed.
    public var buffer: GuestBuffer?
    /// Called once, on any thread. It may submit requests, but must not wait for any.
    public var completion: DiskCompletion

    public init(_ operation: DiskOperation, at offset: DiskOffset, _ buffer: GuestBuffer?, completion: @escaping DiskCompletion) {
        self.operation = operation
        self.offset = offset
        self.buffer = buffer
        self.completion = completion
    }

    /// A flush: when it has succeeded, every write that was completed before it was submitted is durable.
    public static func flush(_ completion: @escaping DiskCompletion) -> DiskRequest {
        DiskRequest(.flush, at: .zero, nil, completion: completion)
    }

    /// The bytes of the disk that it is about, checked; empty for a flush.
    func checkedRange(_ geometry: DiskGeometry, place: String) throws(EngineError) -> Range<DiskOffset> {
        guard operation != .flush else { return .zero..<DiskOffset.zero }
        guard let buffer, buffer.byteCount > .zero, buffer.byteCount.rawValue % UInt64(sectorSize) == 0,
            offset.rawValue % UInt64(sectorSize) == 0
        else {
            throw EngineError(
                .invalidInput, "a request that is no whole number of sectors of 512 bytes", remedy: "The guest's driver asks for nonsense.",
                place: place)
        }
        guard buffer.isWithinMemory else {
            throw EngineError(
                .invalidInput, "a request whose buffer is outside of memory", remedy: "The guest's driver asks for nonsense.", place: place)
        }
        let (end, overflow) = offset.rawValue.addingReportingOverflow(buffer.byteCount.rawValue)
        guard !overflow, end <= geometry.diskLength.rawValue else {
            throw EngineError(
                .invalidInput, "a request for \(buffer.byteCount) bytes at \(offset), beyond the end of the disk",
                remedy: "The guest's driver asks for nonsense.", place: place)
        }
        return offset..<DiskOffset(end)
    }
}

/// A request that was under way at a checkpoint's instant, for the device state that is saved with it.
public struct PendingRequest: Sendable {
    public var id: RequestID
    public var operation: DiskOperation
    public var range: Range<DiskOffset>
    /// How it ended; nil while it has not. A restored machine is told this, and nothing is done again.
    public var outcome: Result<Void, EngineError>?
}
