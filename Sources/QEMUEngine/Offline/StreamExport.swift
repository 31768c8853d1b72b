// A checkpoint's machine as one migration stream that a bare QEMU loads.
//
// Invariant: every page of every block is in the stream, zero pages too, so that it does not matter what the loading machine's memory
// holds before.

import CheckpointCore
import MigrationStream
import Units

/// Writes a checkpoint as a stream for `-incoming`. The disks are not in it.
public struct StreamExport: Sendable {
    /// What the checkpoint says of its machine.
    public let record: MachineRecord
    private let source: any CheckpointSource
    private let deviceState: DeviceState
    /// Bytes that gather before they are sent.
    private static let sendAt = ByteCount.mebibytes(1)

    /// - Throws: `.invalidInput` when it is no machine's checkpoint; `.corrupt`; what the store throws.
    public init(_ source: any CheckpointSource) throws(EngineError) {
        self.source = source
        record = try source.machineRecord()
        deviceState = try DeviceState(try source.blob(record.deviceStateRegion, limit: StreamParser.defaultDeviceStateLimit))
    }

    /// Bytes of memory that `write` goes through.
    public var memoryBytes: ByteCount { record.memoryBlocks.reduce(.zero) { $0 + ByteCount($1.byteLength) } }

    /// Writes the stream from its start to its end.
    /// - Parameters:
    ///   - progress: called with the bytes of memory gone through.
    ///   - send: takes the next bytes; called by the calling thread.
    /// - Returns: the stream's length.
    /// - Throws: what reading and `send` throw; the stream is not complete then.
    @discardableResult public func write(
        progress: (ByteCount) -> Void, _ send: (UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) -> ByteCount {
        var blocks: [PageFeed.Block] = []
        for block in record.memoryBlocks { blocks.append(PageFeed.Block(region: try source.region(block.region))) }
        let feed = try PageFeed(blocks)
        defer { feed.close() }
        var writer = StreamWriter(reservedBytes: Self.sendAt + .mebibytes(1))
        var (sent, done) = (ByteCount.zero, PageCount.zero)
        writer.header(machineType: record.machineType)
        writer.ramBlocks(record.memoryBlocks.map { StreamRAMBlock(name: $0.name, byteLength: ByteCount($0.byteLength)) })
        while let unit = try feed.next() {
            put(unit, into: &writer)
            done += unit.pages.upperBound - unit.pages.lowerBound
            guard writer.byteCount >= Self.sendAt else { continue }
            sent += writer.byteCount
            unsafe try writer.drain(send)
            progress(done.bytes)
        }
        writer.endRAM()
        writer.deviceState(deviceState.bytes)
        sent += writer.byteCount
        unsafe try writer.drain(send)
        return sent
    }

    private func put(_ unit: FedPages, into writer: inout StreamWriter) {
        let block = unit.block.int
        guard !unit.areZero else { return writer.zeroPages(block: block, unit.pages) }
        unsafe unit.forEachPage { page, bytes in
            if let bytes = unsafe bytes {
                unsafe writer.pages(block: block, at: page, bytes)
            } else {
                writer.zeroPages(block: block, page..<page + PageCount(1))
            }
        }
    }
}
