// Data stores for tests: one in memory, and one around another that tells of each call and fails where it is told to.

import CheckpointCore
import StoreFormat
import Threading
import Units

/// Keeps the newest checkpoint, in memory.
final class MemoryStore: CheckpointDataStore {
    typealias Content = [String: [UInt8]]
    private let state = Lock<(name: String, content: Content)?>(nil)

    /// The regions of a checkpoint that was committed; only the newest is kept.
    func content(_ name: String) -> Content? { state.withLock { $0?.name == name ? $0?.content : nil } }

    func begin(_ name: String, parent: String?) throws(EngineError) -> any CheckpointSink {
        let base: Content = try state.withLock { state throws(EngineError) in
            guard let parent else { return [:] }
            guard let state, state.name == parent else { throw EngineError(.notFound, "no such parent", place: parent) }
            return state.content
        }
        return Sink(base) { content in self.state.withLock { $0 = (name, content) } }
    }

    func source(_ name: String) throws(EngineError) -> any CheckpointSource { throw EngineError(.unsupported, "look at its content") }
    func latest() throws(EngineError) -> String? { state.withLock { $0?.name } }

    private final class Sink: CheckpointSink {
        let id = CheckpointID.random()
        let parentID: CheckpointID? = nil
        private let content = Lock<Content>([:])
        private let base: Content
        private let committed: @Sendable (Content) -> Void

        init(_ base: Content, _ committed: @escaping @Sendable (Content) -> Void) {
            self.base = base
            self.committed = committed
        }

        func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink {
            content.withLock { content in
                if content[name] == nil { content[name] = base[name] ?? [UInt8](repeating: 0, count: byteLength.int) }
            }
            return Region(content: content, name: name)
        }
        func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError) { content.withLock { $0[name] = bytes } }
        func setLabel(_ key: String, _ value: String) throws(EngineError) {}
        func cancel() {}
        func commit() throws(EngineError) -> CheckpointReceipt {
            committed(content.withLock { $0 })
            return CheckpointReceipt(id: id, newPages: .zero, storedBytes: .zero)
        }
        func abort() {}
    }

    private struct Region: RegionSink {
        let content: Lock<Content>
        let name: String

        func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
            let start = first.int * pageSize
            content.withLock { unsafe $0[name]!.replaceSubrange(start..<start + bytes.count, with: bytes) }
        }
        func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) { unsafe try write(bytes, at: page, isStable: true) }
        func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
            let bytes = pages.lowerBound.int * pageSize..<pages.upperBound.int * pageSize
            content.withLock { $0[name]!.replaceSubrange(bytes, with: repeatElement(0, count: bytes.count)) }
        }
    }
}

/// What an engine calls of a data store.
enum StoreCall: Sendable, Equatable {
    case begin, addRegion(String), writePages(String), putBlob(String), commit
}

/// Another data store, before each of whose calls somebody is asked.
struct HookedStore: CheckpointDataStore {
    typealias Hook = @Sendable (StoreCall) throws(EngineError) -> Void
    let inner: any CheckpointDataStore
    let hook: Hook

    func begin(_ name: String, parent: String?) throws(EngineError) -> any CheckpointSink {
        try hook(.begin)
        return Sink(inner: try inner.begin(name, parent: parent), hook: hook)
    }
    func source(_ name: String) throws(EngineError) -> any CheckpointSource { try inner.source(name) }
    func latest() throws(EngineError) -> String? { try inner.latest() }

    private struct Sink: CheckpointSink {
        let inner: any CheckpointSink
        let hook: Hook

        var id: CheckpointID { inner.id }
        var parentID: CheckpointID? { inner.parentID }
        func addRegion(_ name: String, kind: RegionKind, byteLength: ByteCount) throws(EngineError) -> any RegionSink {
            try hook(.addRegion(name))
            return Region(inner: try inner.addRegion(name, kind: kind, byteLength: byteLength), name: name, hook: hook)
        }
        func putBlob(_ name: String, _ bytes: [UInt8]) throws(EngineError) {
            try hook(.putBlob(name))
            try inner.putBlob(name, bytes)
        }
        func setLabel(_ key: String, _ value: String) throws(EngineError) { try inner.setLabel(key, value) }
        func cancel() { inner.cancel() }
        func commit() throws(EngineError) -> CheckpointReceipt {
            try hook(.commit)
            return try inner.commit()
        }
        func abort() { inner.abort() }
    }

    private struct Region: RegionSink {
        let inner: any RegionSink
        let name: String
        let hook: Hook

        func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
            try hook(.writePages(name))
            unsafe try inner.write(bytes, at: first, isStable: isStable)
        }
        func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
            try hook(.writePages(name))
            unsafe try inner.put(page: page, bytes)
        }
        func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
            try hook(.writePages(name))
            try inner.putZeros(pages)
        }
    }
}
