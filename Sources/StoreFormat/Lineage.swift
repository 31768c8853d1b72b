// Keys and values of the lineage tree: checkpoints and tombstones, who descends from whom, names that move.
// FORMAT.md 6.3.
//
// Invariant: the three kinds of keys never meet: ids are not 0, so a key of 16 bytes whose first 8 are 0 is a name's.

public import Units

/// What a node of the lineage stands for.
public enum LineageState: UInt8, Hashable, Sendable, CaseIterable {
    /// A checkpoint of the catalog.
    case living = 1
    /// A deleted checkpoint that still joins branches.
    case tombstone
}

/// A key of the lineage tree.
public enum LineageKey: Hashable, Sendable {
    /// A checkpoint or tombstone: its id, then 8 zero bytes.
    case node(CheckpointID)
    /// From a parent to one of its children: both ids.
    case edge(parent: CheckpointID, child: CheckpointID)
    /// A name that moves: 8 zero bytes, then the name in UTF-8.
    case reference(String)

    public static let maximumLength = 8 + Names.maximumLength

    /// The bytes of the key; ids are big-endian, so that the edges of a parent follow its node.
    public var bytes: [UInt8] {
        switch self {
        case .node(let id): CatalogTree.key(id) + [UInt8](repeating: 0, count: 8)
        case .edge(let parent, let child): CatalogTree.key(parent) + CatalogTree.key(child)
        case .reference(let name): Self.referencePrefix + Array(name.utf8)
        }
    }

    /// What the keys of all references start with.
    public static let referencePrefix = [UInt8](repeating: 0, count: 8)
}

/// An entry of the lineage tree.
public enum LineageEntry: Hashable, Sendable {
    /// A checkpoint or tombstone and its parent; nil: it is a root.
    case node(CheckpointID, parent: CheckpointID?, LineageState)
    case edge(parent: CheckpointID, child: CheckpointID)
    case reference(String, CheckpointID)

    public var key: LineageKey {
        switch self {
        case .node(let id, _, _): .node(id)
        case .edge(let parent, let child): .edge(parent: parent, child: child)
        case .reference(let name, _): .reference(name)
        }
    }

    /// The bytes of the value: 16, none, 8.
    public var value: [UInt8] {
        switch self {
        case .node(_, let parent, let state):
            CatalogTree.value(parent ?? CheckpointID(UInt64(0))) + [state.rawValue] + [UInt8](repeating: 0, count: 7)
        case .edge: []
        case .reference(_, let id): CatalogTree.value(id)
        }
    }

    /// Decodes an entry as a leaf holds it.
    ///
    /// - Throws: `.badField`.
    public static func decode(key: [UInt8], value: [UInt8]) throws(FormatError) -> LineageEntry {
        guard key.count >= 9 else { throw bad("a key of \(key.count) bytes") }
        guard let first = CatalogTree.id(ofKey: Array(key[..<8])) else { throw bad("a key without an id") }
        guard first.rawValue != 0 else { return try reference(key, value) }
        guard let second = CatalogTree.id(ofKey: Array(key[8...])) else { throw bad("a key of \(key.count) bytes") }
        guard second.rawValue == 0 else {
            guard value.isEmpty, first != second else { throw bad("an edge with a value, or to itself") }
            return .edge(parent: first, child: second)
        }
        guard value.count == 16, let parent = CatalogTree.id(ofValue: Array(value[..<8])), let state = LineageState(rawValue: value[8]),
            parent != first
        else { throw bad("the value of a node") }
        return .node(first, parent: parent.rawValue == 0 ? nil : parent, state)
    }

    private static func reference(_ key: [UInt8], _ value: [UInt8]) throws(FormatError) -> LineageEntry {
        guard let id = CatalogTree.id(ofValue: value), id.rawValue != 0, let name = String(validating: key[8...], as: UTF8.self) else {
            throw bad("a name that leads nowhere")
        }
        try Names.check(name, subject: subject)
        return .reference(name, id)
    }

    private static let subject = "lineage entry"
    private static func bad(_ reason: String) -> FormatError { FormatError(.badField, subject: subject, reason: reason) }
}
