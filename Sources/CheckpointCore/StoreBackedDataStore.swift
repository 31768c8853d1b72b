// A store of this package as the place where engines keep their checkpoints.
//
// Invariants:
// - Nothing is kept here that the store does not have: a data store may be dropped and made again at any time.
// - Every error of the store comes out as an engine's error that has it inside.

import CheckpointStore
import StoreFormat
import Threading
import Units

/// Keeps engines' checkpoints in a `CheckpointStore`. Thread-safe.
public struct StoreBackedDataStore: CheckpointDataStore {
    /// The store. It stays its owner's, who closes it when all sinks and sources are gone.
    public let store: CheckpointStore
    private let options: WriterOptions

    /// - Parameter options: how checkpoints are written: threads, labels to start with, and who hears of progress.
    public init(_ store: CheckpointStore, options: WriterOptions = WriterOptions()) {
        self.store = store
        self.options = options
    }

    public func begin(_ name: String, parent: String?) throws(EngineError) -> any CheckpointSink {
        try StoreSink(store: store, name: name, parent: parent, options: options)
    }

    public func source(_ name: String) throws(EngineError) -> any CheckpointSource {
        try onStore { () throws(StoreError) in StoreSource(reader: try store.snapshot().reader(named: name)) }
    }

    public func latest() throws(EngineError) -> String? {
        try onStore { () throws(StoreError) in try store.snapshot().checkpoints().last?.name }
    }
}

/// A checkpoint being written into a store.
private struct StoreSink: CheckpointSink {
    let parentID: CheckpointID?
    private let writer: CheckpointWriter

    init(store: CheckpointStore, name: String, parent: String?, options: WriterOptions) throws(EngineError) {
        (writer, parentID) = try onStore { () throws(StoreError) in
            let writer = try store.begin(name, parent: parent, options: options)
            return (writer, writer.parentID)
        }
    }

    var id: CheckpointID { writer.id }

    func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink {
        try onStore { () throws(StoreError) in
            StoreRegionSink(writer: try writer.addRegion(name, kind: kind, byteLength: byteLength))
        }
    }

    func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError) {
        let region = try addRegion(name, kind: .state, byteLength: ByteCount(bytes.count))
        let failure: EngineError? = unsafe bytes.withUnsafeBytes { buffer in
            do throws(EngineError) {
                unsafe try region.write(buffer, at: PageIndex(UInt64(0)), isStable: true)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
    }

    func setLabel(_ key: String, _ value: String) throws(EngineError) {
        try onStore { () throws(StoreError) in try writer.setLabel(key, value) }
    }

    func cancel() { writer.cancel() }

    func commit() throws(EngineError) -> CheckpointReceipt {
        let info = try onStore { () throws(StoreError) in try writer.commit() }
        return CheckpointReceipt(id: info.id, newPages: info.newPages, storedBytes: info.storedBytes)
    }

    func abort() { writer.abort() }
}

/// One region of a checkpoint being written into a store.
private struct StoreRegionSink: RegionSink {
    let writer: RegionWriter

    func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
        try onStore { () throws(StoreError) in unsafe try writer.write(bytes, at: first, isStable: isStable) }
    }

    func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try onStore { () throws(StoreError) in unsafe try writer.put(page: page, bytes) }
    }

    func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
        try onStore { () throws(StoreError) in try writer.putZeros(pages) }
    }
}

/// A checkpoint of a store, open for reading; keeps its generation readable.
private struct StoreSource: CheckpointSource {
    let reader: CheckpointReader

    var name: String { reader.info.name }
    var id: CheckpointID { reader.info.id }
    var regions: [RegionSummary] {
        reader.info.regions.map { RegionSummary(name: $0.name, kind: $0.kind, byteLength: $0.byteLength) }
    }

    func region(_ name: String) throws(EngineError) -> any RegionSource {
        try onStore { () throws(StoreError) in StoreRegionSource(reader: try reader.region(name)) }
    }

    func blob(_ name: String, limit: ByteCount) throws(EngineError) -> [UInt8] {
        let region = try onStore { () throws(StoreError) in try reader.region(name) }
        let length = region.info.byteLength
        guard length <= limit else {
            throw EngineError(
                .corrupt, "the region has \(length) bytes, at most \(limit) are allowed",
                remedy: "The checkpoint was not made by ckstore, or not by this version of it.", place: name)
        }
        var bytes = [UInt8](repeating: 0, count: length.int)
        let failure: StoreError? = unsafe bytes.withUnsafeMutableBytes { buffer in
            do throws(StoreError) {
                unsafe try region.read(at: .zero, into: buffer)
                return nil
            } catch { return error }
        }
        if let failure { throw EngineError(failure) }
        return bytes
    }
}

/// One region of a checkpoint of a store.
private struct StoreRegionSource: RegionSource {
    let reader: RegionReader

    var byteLength: ByteCount { reader.info.byteLength }

    func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        try onStore { () throws(StoreError) in unsafe try reader.read(pages: pages, into: buffer) }
    }

    func forEachSpanOfData(
        _ body: @escaping @Sendable (PageIndex, [Range<Int>], UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) {
        // An error of `body` can't pass through the store as it is: it is carried around it.
        let failure = Lock<EngineError?>(nil)
        do throws(StoreError) {
            unsafe try reader.forEachSpanOfData { (first, data, bytes) throws(StoreError) in
                if failure.withLock({ $0 != nil }) { throw StoreError(.cancelled, "another span failed") }
                do throws(EngineError) { unsafe try body(first, data, bytes) } catch {
                    failure.withLock { $0 = $0 ?? error }
                    throw StoreError(.cancelled, error.reason)
                }
            }
        } catch { throw failure.withLock { $0 } ?? EngineError(error) }
    }

    func dataRanges() throws(EngineError) -> [Range<PageIndex>] {
        try onStore { () throws(StoreError) in try reader.dataRanges() }
    }
}
