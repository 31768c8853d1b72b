// The nodes of the catalog and of the segment table while they are being edited.
//
// Invariant: a node that was read is never changed on the medium; an edited one is written anew
// behind everything committed, and the one that it replaces (`origin`) is accounted dead.

import StoreFormat
import Units

/// A node of a copy-on-write tree that a commit writes.
protocol CommitNode: AnyObject {
    /// The stored node that this one replaces.
    var origin: BlockPointer? { get }
    /// The length of the node's block, the same whatever its pointers are.
    var encodedLength: Int { get }
    /// The sealed block. All children must have their pointers.
    func encoded(birth: BlockBirth) -> [UInt8]
    /// Where the node went; its parent takes the pointer from here.
    var stored: BlockPointer? { get set }
}

/// A child in an edited tree: still only a pointer, or loaded.
enum EditedChild<Node: CommitNode> {
    case stored(BlockPointer)
    case loaded(Node)

    var pointer: BlockPointer {
        switch self {
        case .stored(let pointer): return pointer
        case .loaded(let node):
            if let stored = node.stored { return stored }
            guard let origin = node.origin else { preconditionFailure("a new node has not been stored yet") }
            return origin
        }
    }
}
