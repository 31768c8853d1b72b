// The objects behind C's handles.
//
// Invariants:
// - A handle is one strong reference, given up by the function that frees it. Region writers are the exception: they
//   belong to their writer.
// - A writer is ended only when no call uses it, and no call uses one that has ended: the engine's preconditions hold
//   whatever threads do.

import CKStoreHeader
import CheckpointStore
import Glibc
import Synchronization

/// A handle on `object` for C.
func handle(_ object: some AnyObject) -> OpaquePointer {
    unsafe OpaquePointer(Unmanaged.passRetained(object).toOpaque())
}

/// The object behind a handle.
func object<T: AnyObject>(_ handle: OpaquePointer?, as type: T.Type, _ name: String) throws(StoreError) -> T {
    guard let object = unsafe peek(handle, as: type) else { throw .argument("\(name) is NULL") }
    return object
}

/// The object behind a handle; nil for NULL.
func peek<T: AnyObject>(_ handle: OpaquePointer?, as type: T.Type) -> T? {
    guard let handle = unsafe handle else { return nil }
    return unsafe Unmanaged<T>.fromOpaque(UnsafeRawPointer(handle)).takeUnretainedValue()
}

/// Gives a handle up.
func free<T: AnyObject>(_ handle: OpaquePointer?, as type: T.Type) {
    guard let handle = unsafe handle else { return }
    unsafe Unmanaged<T>.fromOpaque(UnsafeRawPointer(handle)).release()
}

/// A writer and its regions.
final class WriterHandle: Sendable {
    let writer: CheckpointWriter
    let store: CheckpointStore
    private let gate = Gate()
    /// By name, as bytes.
    private let regions = Mutex<[[UInt8]: RegionWriterHandle]>([:])

    init(_ writer: CheckpointWriter, of store: CheckpointStore) {
        self.writer = writer
        self.store = store
    }

    deinit { abort() }

    /// Uses the writer; throws when it has ended.
    func use<R>(_ body: (CheckpointWriter) throws(StoreError) -> R) throws(StoreError) -> R {
        guard gate.enter() else { throw ended }
        defer { gate.leave() }
        return try body(writer)
    }

    /// The region of that name, which belongs to this handle.
    func region(_ region: RegionWriter) -> RegionWriterHandle {
        regions.withLock { regions in
            let key = Array(region.name.utf8)
            if let known = regions[key] { return known }
            let new = RegionWriterHandle(region, of: self)
            regions[key] = new
            return new
        }
    }

    /// Ends the use of the writer, when all calls under way are done. False when it has ended already.
    func close() -> Bool { gate.close() }

    /// Takes `close` back.
    func reopen() { gate.reopen() }

    /// Gives the checkpoint up unless it was committed.
    func abort() { if gate.close() { writer.abort() } }

    var ended: StoreError {
        StoreError(
            .invalidInput, "it has been committed or aborted already", remedy: "Begin another checkpoint.",
            checkpoint: writer.name)
    }
}

/// A region of a checkpoint being written.
final class RegionWriterHandle: Sendable {
    private let region: RegionWriter
    /// Whose part this is.
    private unowned let writer: WriterHandle

    init(_ region: RegionWriter, of writer: WriterHandle) {
        self.region = region
        self.writer = writer
    }

    /// Uses the region; throws when its writer has ended.
    func use(_ body: (RegionWriter) throws(StoreError) -> Void) throws(StoreError) {
        try writer.use { _ throws(StoreError) in try body(region) }
    }
}

/// Lets many in until it is closed, which waits until they have left. Those who come while somebody waits to
/// close it have to wait too: else a stream of them could keep it open for ever.
@safe private final class Gate: @unchecked Sendable {
    private let lock: UnsafeMutablePointer<pthread_rwlock_t>
    private var isOpen = true

    init() {
        unsafe lock = .allocate(capacity: 1)
        var attributes = pthread_rwlockattr_t()
        unsafe pthread_rwlockattr_init(&attributes)
        unsafe pthread_rwlockattr_setkind_np(&attributes, Int32(PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP))
        unsafe pthread_rwlock_init(lock, &attributes)
        unsafe pthread_rwlockattr_destroy(&attributes)
    }

    deinit {
        unsafe pthread_rwlock_destroy(lock)
        unsafe lock.deallocate()
    }

    /// True: inside, until `leave`.
    func enter() -> Bool {
        unsafe pthread_rwlock_rdlock(lock)
        if isOpen { return true }
        unsafe pthread_rwlock_unlock(lock)
        return false
    }

    func leave() { unsafe pthread_rwlock_unlock(lock) }

    /// True when it was open.
    func close() -> Bool { set(false) }

    func reopen() { _ = set(true) }

    /// Returns what it was before.
    private func set(_ open: Bool) -> Bool {
        unsafe pthread_rwlock_wrlock(lock)
        defer { unsafe pthread_rwlock_unlock(lock) }
        defer { isOpen = open }
        return isOpen
    }
}

/// A checkpoint opened for reading, with its description.
@safe final class CheckpointHandle {
    let reader: CheckpointReader
    let info: UnsafePointer<ckstore_checkpoint_info>
    private let arena = Arena()

    init(_ reader: CheckpointReader) {
        self.reader = reader
        unsafe info = arena.keep([arena.describe(reader.info)])
    }
}

/// A region opened for reading, with its description.
@safe final class RegionHandle {
    let reader: RegionReader
    let info: UnsafePointer<ckstore_region_info>
    private let arena = Arena()

    init(_ reader: RegionReader) {
        self.reader = reader
        unsafe info = arena.keep([arena.describe(reader.info)])
    }
}

/// The checkpoints of a snapshot.
@safe final class ListHandle {
    let infos: UnsafeBufferPointer<ckstore_checkpoint_info>
    private let arena = Arena()
    /// A list is part of its snapshot.
    private let snapshot: Snapshot

    init(_ checkpoints: [CheckpointInfo], of snapshot: Snapshot) {
        self.snapshot = snapshot
        let arena = arena
        unsafe infos = UnsafeBufferPointer(start: arena.keep(checkpoints.map { unsafe arena.describe($0) }), count: checkpoints.count)
    }
}
