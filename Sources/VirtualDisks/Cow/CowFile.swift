// A copy-on-write file: block groups of a disk that differ from its parent, crash-safe, verified on every read.
//
// The contract of its bytes is `Formats/COW.md`.
//
// Invariants:
// - After a crash at any moment the file is what the last completed flush left, or a flush that was under way.
// - Bytes that are read are those that were written, or an error is thrown.
// - After a failed flush nothing is known about what is durable: every later write and flush fails.
// - Headers and map pages have their room before they are needed: where there is none left for groups, flushes and merges succeed all the same.
// - A group is read and written by one thread at a time. While a flush takes its picture of the map, nobody writes.

import CheckpointCore
import PageCodec
import Threading
import Units

/// A copy-on-write file. Thread-safe; calls block, so make them on threads of your own.
public final class CowFile: Sendable {
    public let id: OverlayID
    public let geometry: DiskGeometry
    /// Its path, for messages.
    public var name: String { storage.name }
    let storage: any CowStorage
    let layout: CowLayout
    let state: Lock<FileState>

    struct FileState {
        var map: CowMap
        var mergeState = CowState.open
        var parent: OverlayID?
        /// Of the newest header that is durable.
        var generation = Generation(UInt64(0))
        /// The pair of headers that holds it.
        var pair = 0
        /// Every generation that was ever begun is below this one.
        var nextGeneration = Generation(UInt64(1))
        var isHeaderChanged = true
        var busy: Set<BlockGroup> = []
        var writerCount = 0
        var isFlushing = false
        var isTakingSnapshot = false
        /// Somebody is making room for another chunk.
        var isGrowing = false
        var failure: EngineError?
    }

    /// Creates an empty one; durable on return.
    ///
    /// - Parameter parent: the copy-on-write file that it lies on; nil: the disk's image.
    /// - Throws: `.busy` when the file exists; `.noSpace`, `.permission`, `.notFound`, `.ioFailed`.
    public static func create(
        _ path: String, geometry: DiskGeometry, parent: OverlayID? = nil
    ) throws(EngineError) -> CowFile {
        let storage = try CowFileStorage(creating: path)
        do throws(EngineError) { return try create(on: storage, geometry: geometry, parent: parent) } catch {
            // Nobody has seen it yet; that it can't be removed adds nothing to why it could not be made.
            try? storage.remove()
            throw error
        }
    }

    /// Opens one that was created before, by this program or one that has ended, at its last flush.
    ///
    /// - Throws: `.corrupt` when it is damaged or no copy-on-write file, `.unsupported` for an unknown version, `.busy` when somebody has
    ///   it open, `.notFound`, `.permission`, `.ioFailed`.
    public static func open(_ path: String) throws(EngineError) -> CowFile { try open(on: try CowFileStorage(opening: path)) }

    /// Like the other `create`, on storage whose bytes are all zero.
    public static func create(
        on storage: any CowStorage, geometry: DiskGeometry, parent: OverlayID? = nil
    ) throws(EngineError) -> CowFile {
        try storage.provide(CowLayout.header(pair: 0, copy: 0), bytes: Int(CowLayout.headerAreaSize))
        let file = CowFile(storage, id: .random(), CowMap(CowLayout(geometry)), FileState(map: CowMap(CowLayout(geometry)), parent: parent))
        try file.flush()
        return file
    }

    init(_ storage: any CowStorage, id: OverlayID, _ map: CowMap, _ state: FileState) {
        self.storage = storage
        self.id = id
        geometry = map.layout.geometry
        layout = map.layout
        self.state = Lock(state)
    }

    /// The groups that it has, ascending.
    public var groups: [BlockGroup] { state.withLock { $0.map.groups } }
    /// How many groups it has.
    public var groupCount: Int { state.withLock { $0.map.groupCount } }
    /// Whether it has a group.
    public func contains(_ group: BlockGroup) -> Bool { state.withLock { $0.map.slot(of: group) != nil } }
    /// Why it can't be written any more; nil when it can.
    public var failure: EngineError? { state.withLock { $0.failure } }
    /// What it is in the middle of.
    public var mergeState: CowState { state.withLock { $0.mergeState } }
    /// The copy-on-write file below it; nil: the disk's image.
    public var parent: OverlayID? { state.withLock { $0.parent } }

    /// Changes what the next flush records, and flushes. Durable on return.
    func record(_ change: (inout FileState) -> Void) throws(EngineError) {
        state.withLock { state in
            change(&state)
            state.isHeaderChanged = true
        }
        try flush()
    }

    /// Deletes the file, durably.
    /// - Throws: `.notFound`, `.permission`, `.ioFailed`; it can still be used then.
    public func remove() throws(EngineError) { try storage.remove() }
}
