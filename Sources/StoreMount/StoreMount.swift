// A store as a file system: every checkpoint a folder, every region a file in it.
//
// Invariants:
// - Nothing can be changed, whatever a file may be opened for; what is read has been verified on the way, and damage is an I/O error,
//   never other bytes.
// - The generation that is shown stays registered as long as it is shown, those of open files as long as these are open: what is
//   deleted meanwhile stays readable here, and its space is not used again before.
// - When `wait` returns, the file system is off and nothing of it is left.
// - Only this mount is ever taken off, never another one that has come to its path.

import CStoreMount
import CheckpointStore
import Glibc
import Threading
import Units

/// How to mount.
public struct MountOptions: Sendable {
    /// An empty directory.
    public var path: String
    /// Show only this one; nil: all.
    public var checkpoint: String?
    /// Lets users other than this process's look into it.
    public var allowsOthers = false
    /// Show checkpoints that are made later, and forget deleted ones. Otherwise the mount shows one generation for its life.
    public var follows = false
    /// Lets programs open memory for writing, so that they can map it privately, as QEMU does with a machine's main memory. Nothing can be
    /// changed all the same, though the system's table of mounts does not say that it is read-only then.
    public var allowsPrivateWrites = false
    /// Memory for decoded pages, shared by all files.
    public var cache = ByteCount.mebibytes(256)

    /// Mounts on `path`.
    public init(path: String) { self.path = path }

    /// The least memory to work with.
    public static let leastCache = ByteCount.mebibytes(4)
}

/// A mounted store. Thread-safe.
@safe public final class StoreMount: Sendable {
    /// The file in each checkpoint's folder that describes it.
    public static let descriptionName = "checkpoint.json"
    /// Where it is mounted, absolute.
    public var path: String { point.path }
    /// The generation that is shown; a mount that follows its store goes on to later ones.
    public var generation: Generation { tree.snapshot.generation }

    private let point: MountPoint
    private let tree: MountTree
    private let session: MountSession
    private let ahead: ReadAhead
    private let log: MountLog
    private let mount: MountHandle
    private let identity: ck_mount_identity
    private let ending = Lock(false)
    private let threads = Lock<[PlainThread]>([])
    private let helpers = Lock<[PlainThread]>([])

    /// Threads that answer requests: more than cores, since some wait for the medium.
    private static let serving = max(4, availableCores() + 2)
    /// How far the kernel reads ahead. More makes mapped files that are read here and there slower.
    private static let readAheadKibibytes: UInt32 = 512
    private static let followMilliseconds = 1000

    /// Mounts `store`. When this returns, the file system can be used.
    ///
    /// The store must stay open until `wait` has returned. `describe` makes the content of `checkpoint.json`.
    /// - Throws: `.notFound` where there is no such checkpoint; `.notFound`, `.invalidInput`, `.busy`, `.permission`, `.ioFailed` where
    ///   the directory can't be mounted on; what reading the store throws. Nothing is mounted then.
    public init(
        _ store: CheckpointStore, _ options: MountOptions, log: MountLog,
        describe: @escaping @Sendable (Snapshot, CheckpointInfo) throws(StoreError) -> [UInt8]
    ) throws(StoreError) {
        precondition(options.cache >= MountOptions.leastCache, "too little memory to work with")
        point = try MountPoint(options.path)
        tree = try MountTree(store, only: options.checkpoint, follows: options.follows, describe: describe)
        ahead = ReadAhead()
        self.log = log
        session = MountSession(tree, cache: options.cache, ahead, log)
        (mount, identity) = try Self.start(point, session, source: store.medium.name, options)
        try startThreads()
        // Users other than root may not, and need not.
        _ = unsafe ck_set_read_ahead(point.path, Self.readAheadKibibytes)
    }

    private static func start(
        _ point: MountPoint, _ session: MountSession, source: String, _ options: MountOptions
    ) throws(StoreError) -> (MountHandle, ck_mount_identity) {
        var handler = unsafe session.handler()
        var result: OpaquePointer?
        var identity = ck_mount_identity()
        var message = [CChar](repeating: 0, count: 512)
        let status = unsafe source.withCString { source in
            unsafe point.path.withCString { path in
                var options = unsafe ck_mount_options(
                    source: source, path: path, allows_others: options.allowsOthers, private_writes: options.allowsPrivateWrites)
                return unsafe ck_mount_start(&options, &handler, &result, &identity, &message, message.count)
            }
        }
        guard status == 0, let result = unsafe result else {
            session.release()
            let text = unsafe message.withUnsafeBufferPointer { unsafe String(cString: $0.baseAddress!) }
            throw point.failure(-status, text)
        }
        return (unsafe MountHandle(result), identity)
    }

    private func startThreads() throws(StoreError) {
        let mount = mount
        let log = log
        for _ in 0..<Self.serving {
            let thread = PlainThread {
                let status = mount.serve()
                if status != 0 { log.add("a thread of the mount has ended: \(unsafe String(cString: strerror(-status)))") }
            }
            if let thread { threads.withLock { $0.append(thread) } }
        }
        guard threads.withLock({ !$0.isEmpty }) else {
            takeOff()
            throw StoreError(.ioFailed, "can't start a thread", remedy: "Raise the limit on threads (ulimit -u).")
        }
        let ahead = ahead
        // Without these two everything works, only slower, or when somebody looks.
        var helpers = [PlainThread { ahead.run() }]
        if tree.follows { helpers.append(PlainThread { self.follow() }) }
        self.helpers.withLock { [helpers] list in list = helpers.compactMap(\.self) }
    }

    /// Looks for newer generations now and then, so that a mount that nobody uses does not hold an old one.
    private func follow() {
        while ending.waitFor(milliseconds: Self.followMilliseconds, { $0 ? true : nil }) == nil {
            do { try tree.refresh() } catch { log.add(error) }
        }
    }

    /// Takes the file system off.
    /// - Parameter detach: where somebody uses it: false: `.busy` is thrown and nothing changes; true: its name is gone at once, and
    ///   `wait` returns when the last file in it has been closed.
    public func unmount(detach: Bool) throws(StoreError) { try point.unmount(identity, detach: detach) }

    /// Waits until the file system has been unmounted, by whomever, and nobody uses it any more. Call it once.
    public func wait() {
        for thread in threads.withLock({ $0 }) { thread.join() }
        ending.withLock { $0 = true }
        ending.wake()
        ahead.end()
        for thread in helpers.withLock({ $0 }) { thread.join() }
        takeOff()
    }

    /// Frees everything, once no thread works any more. Where threads ended for another reason than an unmount, or none began, the name must
    /// not stay behind without an answer.
    private func takeOff() {
        do { try unmount(detach: true) } catch { log.add(error) }
        mount.end()
        session.release()
    }
}

/// What the C part has of a mount.
@safe struct MountHandle: Sendable {
    nonisolated(unsafe) private let pointer: OpaquePointer

    init(_ pointer: OpaquePointer) { unsafe self.pointer = pointer }

    /// Answers requests until the file system is off. 0, or a negative error number.
    func serve() -> Int32 { unsafe ck_mount_serve(pointer) }

    /// Call it once, when no thread serves any more.
    func end() { unsafe ck_mount_end(pointer) }
}
