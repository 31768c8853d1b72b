// Names in the mounted file system, and which generation of the store they are of.
//
// Invariants:
// - All that one call says is of one generation, which is registered with all processes as long as somebody may ask for it.
// - When the mount follows the store, a newer generation takes the place of the one before as a whole. Files that are open keep
//   theirs, through the folder that they were opened in.

import CStoreMount
import CheckpointStore
import StoreFormat
import Threading
import Units

/// The tree of folders and files. Thread-safe.
final class MountTree: Sendable {
    private struct State {
        var snapshot: Snapshot
        /// When this generation came into view, nanoseconds since 1970-01-01 UTC.
        var sinceNanoseconds: UInt64
        /// The checkpoints, the oldest first; made when first asked for.
        var entries: [FolderEntry]?
        var folders: [CheckpointNumber: MountedFolder] = [:]
        var numbers: [CheckpointID: CheckpointNumber] = [:]
        var checkpoints: [CheckpointID] = []
        var referenceNumbers: [[UInt8]: UInt64] = [:]
        var references: [String] = []
    }

    private let state: Lock<State>
    private let store: CheckpointStore
    /// The one checkpoint that is shown; nil: all are.
    private let only: String?
    let follows: Bool
    private let describe: @Sendable (Snapshot, CheckpointInfo) throws(StoreError) -> [UInt8]

    /// Folders that are kept because they were asked for lately. A folder is a checkpoint's record.
    private static let keptFolders = 256

    init(
        _ store: CheckpointStore, only: String?, follows: Bool,
        describe: @escaping @Sendable (Snapshot, CheckpointInfo) throws(StoreError) -> [UInt8]
    ) throws(StoreError) {
        self.store = store
        self.only = only
        self.follows = follows
        self.describe = describe
        let snapshot = try store.snapshot()
        if let only { _ = try snapshot.checkpoint(named: only) }
        state = Lock(State(snapshot: snapshot, sinceNanoseconds: wallClockNanoseconds()))
    }

    /// The generation that is shown.
    var snapshot: Snapshot { state.withLock { $0.snapshot } }

    /// Takes the newest generation, where the mount follows the store. O(1) when there is none.
    func refresh() throws(StoreError) {
        guard follows else { return }
        let newest = try store.snapshot()
        let old = state.withLock { state -> (Snapshot, [CheckpointNumber: MountedFolder])? in
            guard newest.generation > state.snapshot.generation else { return nil }
            defer {
                state.snapshot = newest
                state.sinceNanoseconds = wallClockNanoseconds()
                state.entries = nil
                state.folders = [:]
            }
            return (state.snapshot, state.folders)
        }
        // Whatever nobody has open lets go of its generation here.
        withExtendedLifetime(old) {}
    }

    /// Moving names for checkpoints, such as `latest`, with the names of the checkpoints that they stand for.
    private func references(in snapshot: Snapshot) throws(StoreError) -> [(name: String, checkpoint: String)] {
        var all: [(name: String, checkpoint: String)] = []
        for reference in try snapshot.references() { all.append((reference.name, try snapshot.checkpoint(named: reference.name).name)) }
        return all
    }

    // MARK: names

    /// What `name` stands for in `folder`; nil: nothing.
    func lookUp(_ name: String, in folder: Inode) throws(StoreError) -> ck_node? {
        switch folder {
        case .root:
            try refresh()
            if let folder = try folderIfThere(named: name) { return try folder.node(.folder(folder.number), isMoving: follows) }
            let snapshot = snapshot
            guard let reference = try references(in: snapshot).first(where: { Names.equal($0.name, name) }), isShown(reference.checkpoint)
            else { return nil }
            return link(.reference(number(ofReference: name)), to: reference.checkpoint)
        case .folder(let number):
            guard let folder = try self.folder(number), let inode = folder.inode(named: name) else { return nil }
            return try folder.node(inode, isMoving: follows)
        case .description, .region, .reference: return nil
        }
    }

    /// What the kernel is told of an inode; nil: it is gone.
    func node(_ inode: Inode) throws(StoreError) -> ck_node? {
        switch inode {
        case .root:
            try refresh()
            return root()
        case .folder(let number), .description(let number), .region(let number, _):
            return try folder(number)?.node(inode, isMoving: follows)
        case .reference: return try target(of: inode).map { link(inode, to: $0) }
        }
    }

    /// The name of the checkpoint that a reference stands for; nil: it is gone.
    func target(of inode: Inode) throws(StoreError) -> String? {
        guard case .reference(let number) = inode else { return nil }
        let known = state.withLock { number < UInt64($0.references.count) ? ($0.references[Int(number)], $0.snapshot) : nil }
        guard let (name, snapshot) = known else { return nil }
        return try references(in: snapshot).first { Names.equal($0.name, name) }?.checkpoint
    }

    /// All entries of the root or of a checkpoint's folder; nil: there is no such folder.
    func entries(of inode: Inode) throws(StoreError) -> [FolderEntry]? {
        if case .folder(let number) = inode { return try folder(number)?.entries() }
        guard inode == .root else { return nil }
        try refresh()
        let (snapshot, known) = state.withLock { ($0.snapshot, $0.entries) }
        if let known { return known }
        let shown = if let only { [try snapshot.checkpoint(named: only)] } else { try snapshot.checkpoints() }
        var entries = shown.map { info in
            FolderEntry(name: info.name, inode: .folder(number(of: info.id)), nanoseconds: info.createdNanoseconds)
        }
        for reference in try references(in: snapshot) where isShown(reference.checkpoint) {
            entries.append(
                FolderEntry(name: reference.name, inode: .reference(number(ofReference: reference.name)), nanoseconds: root().nanoseconds))
        }
        state.withLock { if $0.snapshot === snapshot { $0.entries = entries } }
        return entries
    }

    /// What the kernel is told of an entry of a listing. Without reading anything where `isBrief`: then only its kind and number count.
    func node(of entry: FolderEntry, isBrief: Bool) throws(StoreError) -> ck_node? {
        switch entry.inode {
        case .folder:
            var node = root()
            node.inode = entry.inode.number
            node.nanoseconds = entry.nanoseconds
            node.name_seconds = follows ? Trust.movingSeconds : Trust.constantSeconds
            node.attribute_seconds = Trust.constantSeconds
            return node
        case .region, .description:
            guard !isBrief else {
                var node = ck_node()
                (node.inode, node.kind) = (entry.inode.number, CK_NODE_FILE)
                return node
            }
            return try self.node(entry.inode)
        case .root, .reference: return try self.node(entry.inode)
        }
    }

    private func root() -> ck_node {
        var node = ck_node()
        node.inode = Inode.root.number
        node.kind = CK_NODE_FOLDER
        node.links = 2
        node.nanoseconds = state.withLock { $0.sinceNanoseconds }
        node.name_seconds = Trust.constantSeconds
        node.attribute_seconds = follows ? Trust.movingSeconds : Trust.constantSeconds
        return node
    }

    private func link(_ inode: Inode, to checkpoint: String) -> ck_node {
        var node = root()
        node.inode = inode.number
        node.kind = CK_NODE_LINK
        node.links = 1
        node.size = UInt64(checkpoint.utf8.count)
        node.name_seconds = node.attribute_seconds
        return node
    }

    // MARK: checkpoints

    /// The folder of a checkpoint; nil: it has been deleted from what is shown.
    func folder(_ number: CheckpointNumber) throws(StoreError) -> MountedFolder? {
        let (known, id, snapshot) = state.withLock { state in
            (state.folders[number], number.rawValue < UInt64(state.checkpoints.count) ? state.checkpoints[number.int] : nil, state.snapshot)
        }
        if let known { return known }
        guard let id else { return nil }
        do { return keep(try snapshot.checkpoint(id), of: snapshot) } catch {
            if error.code == .notFound { return nil }
            throw error
        }
    }

    private func isShown(_ name: String) -> Bool { only.map { Names.equal($0, name) } ?? true }

    private func folderIfThere(named name: String) throws(StoreError) -> MountedFolder? {
        let snapshot = snapshot
        guard isShown(name) else { return nil }
        do { return keep(try snapshot.checkpoint(named: name), of: snapshot) } catch {
            if error.code == .notFound { return nil }
            throw error
        }
    }

    private func keep(_ info: CheckpointInfo, of snapshot: Snapshot) -> MountedFolder {
        let number = number(of: info.id)
        return state.withLock { state in
            if let known = state.folders[number], known.snapshot === snapshot { return known }
            let folder = MountedFolder(snapshot, number, info, describe: describe)
            guard state.snapshot === snapshot else { return folder }
            if state.folders.count >= Self.keptFolders { state.folders.remove(at: state.folders.startIndex) }
            state.folders[number] = folder
            return folder
        }
    }

    private func number(of id: CheckpointID) -> CheckpointNumber {
        state.withLock { state in
            if let known = state.numbers[id] { return known }
            let number = CheckpointNumber(state.checkpoints.count)
            state.checkpoints.append(id)
            state.numbers[id] = number
            return number
        }
    }

    private func number(ofReference name: String) -> UInt64 {
        state.withLock { state in
            // By its bytes: texts that look alike may be two names.
            let key = Array(name.utf8)
            if let known = state.referenceNumbers[key] { return known }
            let number = UInt64(state.references.count)
            state.references.append(name)
            state.referenceNumbers[key] = number
            return number
        }
    }
}
