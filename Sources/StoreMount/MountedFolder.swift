// A checkpoint as a folder: its regions and its description as files.
//
// Invariant: the folder's snapshot keeps everything readable that the folder's files show, as long as the folder lives.

import CStoreMount
import CheckpointStore
import StoreFormat
import Threading
import Units

/// How long the kernel may trust what it has been told.
enum Trust {
    /// Of what can't change while the mount lives.
    static let constantSeconds = 365.0 * 86400
    /// Of names that may go or move with the next generation.
    static let movingSeconds = 1.0
}

/// The folder of one checkpoint. Immutable but for its description, which is made when it is first asked for.
final class MountedFolder: Sendable {
    let snapshot: Snapshot
    let number: CheckpointNumber
    let info: CheckpointInfo
    let regions: [RegionInfo]
    private let describe: @Sendable (Snapshot, CheckpointInfo) throws(StoreError) -> [UInt8]
    private let described = Lock<[UInt8]?>(nil)

    init(
        _ snapshot: Snapshot, _ number: CheckpointNumber, _ info: CheckpointInfo,
        describe: @escaping @Sendable (Snapshot, CheckpointInfo) throws(StoreError) -> [UInt8]
    ) {
        self.snapshot = snapshot
        self.number = number
        self.info = info
        regions = info.regions
        self.describe = describe
    }

    /// The content of `checkpoint.json`.
    func description() throws(StoreError) -> [UInt8] {
        if let known = described.withLock({ $0 }) { return known }
        let made = try describe(snapshot, info)
        described.withLock { $0 = made }
        return made
    }

    /// A region that is itself called like the description takes its place: data is not hidden.
    var hasDescription: Bool { index(of: StoreMount.descriptionName) == nil }

    private func index(of name: String) -> Int? { regions.firstIndex { Names.equal($0.name, name) } }

    /// What `name` stands for in the folder; nil: nothing.
    func inode(named name: String) -> Inode? {
        if let index = index(of: name) { return .region(number, index) }
        return Names.equal(name, StoreMount.descriptionName) ? .description(number) : nil
    }

    /// What the kernel is told of the folder (`.folder`) or of something in it. nil: there is no such region.
    /// - Parameter isMoving: whether the checkpoint may go while the file system is mounted.
    func node(_ inode: Inode, isMoving: Bool) throws(StoreError) -> ck_node? {
        var node = ck_node()
        node.inode = inode.number
        node.nanoseconds = info.createdNanoseconds
        node.links = 1
        node.kind = CK_NODE_FILE
        (node.name_seconds, node.attribute_seconds) = (Trust.constantSeconds, Trust.constantSeconds)
        switch inode {
        case .folder:
            node.kind = CK_NODE_FOLDER
            node.links = 2
            node.name_seconds = isMoving ? Trust.movingSeconds : Trust.constantSeconds
        case .description:
            node.size = UInt64(try description().count)
            // It says what the parent is called, which may be deleted.
            node.attribute_seconds = isMoving ? Trust.movingSeconds : Trust.constantSeconds
        case .region(_, let index):
            guard index < regions.count else { return nil }
            node.size = min(regions[index].byteLength.rawValue, UInt64(Int64.max))
            node.blocks = regions[index].storedPages.rawValue * UInt64(pageSize / 512)
        case .root, .reference: return nil
        }
        return node
    }

    /// All entries of the folder.
    func entries() -> [FolderEntry] {
        var entries = regions.enumerated().map {
            FolderEntry(name: $1.name, inode: .region(number, $0), nanoseconds: info.createdNanoseconds)
        }
        if hasDescription {
            entries.append(
                FolderEntry(name: StoreMount.descriptionName, inode: .description(number), nanoseconds: info.createdNanoseconds))
        }
        return entries
    }
}

/// An entry of a folder.
struct FolderEntry: Sendable {
    var name: String
    var inode: Inode
    /// The time of what it names, since 1970-01-01 UTC.
    var nanoseconds: UInt64
}
