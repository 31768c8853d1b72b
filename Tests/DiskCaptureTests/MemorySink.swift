// A checkpoint in memory: takes what a capture puts, and tells what it had to be told.

import CheckpointCore
import StoreFormat
import Threading
import Units

/// A checkpoint whose regions are byte arrays.
final class MemorySink: CheckpointSink {
    let id = CheckpointID.random()
    let parentID: CheckpointID?
    private let parent: [String: [UInt8]]
    private let regions = Lock<[String: MemoryRegion]>([:])

    /// - Parameter parent: what pages are that are never put.
    init(parent: MemorySink? = nil) {
        parentID = parent?.id
        self.parent = parent?.contents ?? [:]
    }

    var contents: [String: [UInt8]] { regions.withLock { $0.mapValues(\.bytes) } }
    /// The content of a disk's region; empty when there is none.
    func disk(_ name: String) -> [UInt8] { contents[MachineRecord.diskRegion(name)] ?? [] }
    /// The pages of a disk that were put, read or zero.
    func pagesPut(_ name: String) -> Int { regions.withLock { $0[MachineRecord.diskRegion(name)]?.pagesPut ?? 0 } }

    func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink {
        regions.withLock { regions in
            let region = regions[name] ?? MemoryRegion(parent[name], byteLength.int)
            regions[name] = region
            return region
        }
    }

    func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError) {}
    func setLabel(_ key: String, _ value: String) throws(EngineError) {}
    func cancel() {}
    func abort() {}
    func commit() throws(EngineError) -> CheckpointReceipt {
        CheckpointReceipt(id: id, newPages: .zero, storedBytes: .zero)
    }
}

/// One region of it.
final class MemoryRegion: RegionSink {
    private struct State {
        var bytes: [UInt8]
        var put: Set<Int> = []
    }
    private let state: Lock<State>
    private let byteLength: Int

    /// Pages that are in no parent start as garbage: only what is put makes them right.
    init(_ parent: [UInt8]?, _ byteLength: Int) {
        let pages = PageCount(covering: ByteCount(byteLength)).bytes.int
        var bytes = parent ?? []
        bytes += [UInt8](repeating: 0xEE, count: pages - bytes.count)
        state = Lock(State(bytes: bytes))
        self.byteLength = byteLength
    }

    var bytes: [UInt8] { state.withLock { Array($0.bytes[..<byteLength]) } }
    var pagesPut: Int { state.withLock { $0.put.count } }

    func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
        let start = first.int * pageSize
        precondition(start + bytes.count <= byteLength, "no bytes behind the region's end")
        state.withLock { state in
            unsafe state.bytes.replaceSubrange(start..<start + bytes.count, with: bytes)
            state.put.formUnion(first.int..<first.int + (bytes.count + pageSize - 1) / pageSize)
        }
    }

    func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        unsafe try write(bytes, at: page, isStable: true)
    }

    func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
        let range = pages.lowerBound.int * pageSize..<pages.upperBound.int * pageSize
        state.withLock { state in
            precondition(range.upperBound <= state.bytes.count, "no pages behind the region's end")
            state.bytes.replaceSubrange(range, with: repeatElement(0, count: range.count))
            state.put.formUnion(pages.lowerBound.int..<pages.upperBound.int)
        }
    }
}
