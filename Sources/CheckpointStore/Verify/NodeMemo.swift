// What is known of the nodes of page-table trees: each is verified once, wherever it is shared.
//
// Invariants:
// - A node is claimed by one thread at a time; the others go on elsewhere, or wait for it.
// - A thread waits only for nodes below those that it holds itself, so that nobody waits in a circle.
// - Memory: about 100 bytes for each node that was verified, 64 more for a full leaf.

import StoreFormat
import Threading
import Units

/// A node of a region's tree as somebody names it: the pointer, and the place that it is taken for.
struct TreeNode: Sendable {
    var pointer: BlockPointer
    var regionKey: RegionKey
    var first: SpanIndex
    /// 0: a leaf.
    var level: UInt8

    /// Tells apart nodes that are said to be in one place, and uses of a block for several places of a tree.
    var identity: NodeIdentity {
        NodeIdentity(place: pointer.placeNumber, fingerprint: pointer.fingerprint(regionKey, first) &+ UInt64(level))
    }
}

struct NodeIdentity: Hashable, Sendable {
    var place: UInt64
    var fingerprint: UInt64
}

extension BlockPointer {
    /// Segment and offset in one number.
    var placeNumber: UInt64 { segment.rawValue << 32 | UInt64(offset.rawValue) }

    /// A number that differs where content, region or span do.
    func fingerprint(_ key: RegionKey, _ span: SpanIndex) -> UInt64 {
        (checksum.low ^ birth.rawValue ^ UInt64(storedLength) ^ key.rawValue &* 0x9E37_79B9_7F4A_7C15) &+ span.rawValue &* 0xC2B2_AE3D_27D4_EB4F
    }
}

/// Pages that one damage takes away below a node.
struct NodeLoss: Sendable {
    /// Its number in the damage log.
    var damage: Int
    var pages: PageRanges
}

/// What was found at a node and below it.
struct NodeFinding: Sendable {
    /// Pages that its leaves list.
    var pages: UInt64 = 0
    /// The end of the last page, or of the first span of the last child, that it names.
    var end: UInt64 = 0
    /// Empty when all is sound.
    var losses: [NodeLoss] = []
}

/// Thread-safe.
final class NodeMemo: Sendable {
    enum Claim {
        case known(NodeFinding)
        /// The caller verifies it, and then calls `finish` or `abandon`.
        case mine
        /// Another thread is at it.
        case busy
    }

    private struct State {
        var sound: [NodeIdentity: (pages: UInt64, end: UInt64)] = [:]
        var damaged: [NodeIdentity: NodeFinding] = [:]
        /// The pages that full leaves list: what patch leaves over them need to know.
        var listed: [NodeIdentity: PageSet] = [:]
        var claimed = Set<NodeIdentity>()

        func finding(_ node: NodeIdentity) -> NodeFinding? {
            if let known = sound[node] { return NodeFinding(pages: known.pages, end: known.end) }
            return damaged[node]
        }
    }
    private let state = Lock(State())

    func claim(_ node: NodeIdentity) -> Claim {
        state.withLock { state in
            if let known = state.finding(node) { return .known(known) }
            return state.claimed.insert(node).inserted ? .mine : .busy
        }
    }

    /// Ends a claim. `listed`: the pages of a full leaf that could be read.
    func finish(_ node: NodeIdentity, _ finding: NodeFinding, listed: PageSet? = nil) {
        state.withLock { state in
            state.claimed.remove(node)
            state.listed[node] = listed
            if finding.losses.isEmpty {
                state.sound[node] = (finding.pages, finding.end)
            } else {
                state.damaged[node] = finding
            }
        }
        state.wake()
    }

    /// Gives a claim up.
    func abandon(_ node: NodeIdentity) {
        state.withLock { _ = $0.claimed.remove(node) }
        state.wake()
    }

    /// Waits while another thread is at the node. Nil when that gave it up.
    func wait(for node: NodeIdentity) -> NodeFinding? {
        state.waitFor { state -> NodeFinding?? in
            if let known = state.finding(node) { return .some(known) }
            return state.claimed.contains(node) ? nil : .some(nil)
        }
    }

    /// The pages that a full leaf lists; nil when it can't be read.
    func listed(_ node: NodeIdentity) -> PageSet? { state.withLock { $0.listed[node] } }
}
