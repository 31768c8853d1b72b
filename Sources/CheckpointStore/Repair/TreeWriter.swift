// Writing trees anew when the segment table that says where there is room may be lost itself.
//
// Invariants:
// - Nothing is overwritten that any generation may name: what is behind the committed length of the catalog's segment, and free
//   segments, as far as the table can be read; else only what is all zero, and what a commit left that never came to its slots.
// - Segments are written to only under their claims.
// - Until `flush` nothing is on the medium.

import Media
import PageCodec
import StoreFormat
import Units

/// Gives blocks of class 3 their places, and writes them. Confined to the committing thread.
final class TreeWriter {
    /// A place for a block of a known length.
    struct Place {
        var segment: SegmentIndex
        var offset: Int
        var length: Int
    }

    /// What is written in one segment.
    struct Part {
        var segment: SegmentIndex
        var start: Int
        var end: Int
        /// 64-byte units of blocks.
        var units: UInt32 = 0
        var isFresh: Bool { start == 0 }
    }

    private let store: CheckpointStore
    private let survey: TreeSurvey
    private let transaction: CommitTransaction
    /// The end of blocks that are known to be in the catalog's segment.
    private let knownEnd: Int
    private(set) var parts: [Part] = []
    /// Parts in use; those behind are claimed, and empty.
    private var current = -1
    private var blocks: [(place: Place, bytes: [UInt8])] = []
    private var cursor: UInt64 = 0
    private(set) var claims: [SegmentIndex] = []

    init(_ store: CheckpointStore, _ survey: TreeSurvey, _ transaction: CommitTransaction, knownEnd: Int) {
        self.store = store
        self.survey = survey
        self.transaction = transaction
        self.knownEnd = knownEnd
    }

    private var unit: Int { Int(survey.slot.geometry.commitUnit) }
    private var size: Int { Int(survey.slot.geometry.segmentSize) }

    // MARK: places

    /// - Throws: `.noSpace` when no segment is known to be free.
    func reserve(_ length: Int) throws(StoreError) -> Place {
        let padded = roundUp(length, to: blockAlignment)
        while current < 0 || roundUp(parts[current].end + padded, to: unit) > size {
            if current + 1 == parts.count { parts.append(try nextPart()) }
            current += 1
        }
        let place = Place(segment: parts[current].segment, offset: parts[current].end, length: length)
        parts[current].end += padded
        parts[current].units += CommitTransaction.liveUnits(length)
        return place
    }

    /// Where the writer is; what is reserved behind it can be given up again, the segments staying claimed.
    struct Mark {
        fileprivate var current: Int
        fileprivate var part: Part?
    }
    var mark: Mark { Mark(current: current, part: current < 0 ? nil : parts[current]) }

    func goBack(to mark: Mark) {
        if let part = mark.part { parts[mark.current] = part }
        for index in parts.indices where index > mark.current {
            parts[index].end = parts[index].isFresh ? SegmentHeader.encodedLength : parts[index].start
            parts[index].units = 0
        }
        current = mark.current
    }

    /// The parts that hold something.
    var usedParts: ArraySlice<Part> { parts.prefix(current + 1).filter { $0.units > 0 }[...] }

    @discardableResult func fill(_ place: Place, _ bytes: [UInt8]) -> BlockPointer {
        precondition(bytes.count == place.length, "a block fills its place")
        guard let header = unsafe try? Block.peek(bytes.span.bytes) else { preconditionFailure("encoders seal their blocks") }
        blocks.append((place, bytes))
        return BlockPointer(sealed: bytes, kind: header.kind, segment: place.segment, offset: SegmentOffset(place.offset))
    }

    private func nextPart() throws(StoreError) -> Part {
        if parts.isEmpty, let segment = survey.slot.catalogSegment, let start = try end(of: segment) {
            return Part(segment: segment, start: start, end: start)
        }
        while cursor < UInt64(survey.slot.geometry.segmentCount) {
            let segment = SegmentIndex(cursor)
            cursor += 1
            guard try isFree(segment), try store.lockClaim(segment) else { continue }
            claims.append(segment)
            // Somebody may have written there, and gone, before it was locked.
            guard try isFree(segment) else { continue }
            return Part(segment: segment, start: 0, end: SegmentHeader.encodedLength)
        }
        throw StoreError(
            .noSpace, "there is no room for the trees: no segment is known to be free",
            remedy: "Bring the checkpoints into another store (`ckstore salvage`).", medium: store.medium.name)
    }

    /// From where on the catalog's segment can be written to; nil when it is full.
    private func end(of segment: SegmentIndex) throws(StoreError) -> Int? {
        if let entry = survey.entry(segment) {
            return entry.isUsed && entry.segmentClass == .catalog && Int(entry.committedLength) < size ? Int(entry.committedLength) : nil
        }
        guard segment.rawValue < UInt64(survey.slot.geometry.segmentCount) else { return nil }
        // What is behind the catalog's blocks was made zero when the segment was begun.
        let start = max(roundUp(try endOfContent(segment, above: knownEnd), to: unit), knownEnd == 0 ? unit : roundUp(knownEnd, to: unit))
        return start < size ? start : nil
    }

    private func isFree(_ segment: SegmentIndex) throws(StoreError) -> Bool {
        if let entry = survey.entry(segment) {
            guard !entry.isUsed, segment != survey.slot.catalogSegment else { return false }
            return try store.obstacle(to: entry, survey.slot) == nil
        }
        if segment == survey.slot.catalogSegment { return false }
        if try endOfContent(segment, above: 0) == 0 { return true }
        let header = SalvageLayout.header(store.medium, at: survey.slot.geometry.offset(of: segment))
        return header.map {
            $0.storeUUID == survey.slot.uuid && $0.segment == segment && $0.segmentClass == .catalog
                && $0.birth == BlockBirth(transaction.generation) && $0.baseGeneration == survey.slot.generation
        } ?? false
    }

    /// The end of the last page in a segment that is not all zero, at least `floor`.
    private func endOfContent(_ segment: SegmentIndex, above floor: Int) throws(StoreError) -> Int {
        let start = survey.slot.geometry.offset(of: segment)
        let buffer = AlignedBuffer(count: pageSize)
        for position in stride(from: size - pageSize, through: floor / pageSize * pageSize, by: -pageSize) {
            let isReadable = unsafe (try? store.medium.read(at: start + ByteCount(position), into: buffer.bytes)) != nil
            if unsafe !isReadable || !isZero(UnsafeRawBufferPointer(buffer.bytes)) { return position + pageSize }
        }
        return floor
    }

    // MARK: writing

    /// Writes everything that was filled. Not durable before the next flush.
    func write() throws(StoreError) {
        for part in usedParts {
            let buffer = AlignedBuffer(count: roundUp(part.end, to: unit) - part.start)
            buffer.clear(0..<buffer.count)
            if part.isFresh { unsafe buffer.bytes.copyBytes(from: transaction.header(of: part.segment)) }
            for (place, bytes) in blocks where place.segment == part.segment {
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[(place.offset - part.start)...]).copyBytes(from: bytes)
            }
            let offset = survey.slot.geometry.offset(of: part.segment) + ByteCount(part.start)
            try onMedium { () throws(MediumError) in
                unsafe try store.medium.write(at: offset, UnsafeRawBufferPointer(buffer.bytes))
            }
            if part.isFresh { try transaction.clear(part.segment, from: buffer.count) }
        }
    }

    // MARK: catalog nodes

    /// Writes a tree with these entries, ascending by key. Returns its root; nil when there are none.
    func tree(_ tree: CatalogTree, _ entries: [(key: [UInt8], value: [UInt8])]) throws(StoreError) -> BlockPointer? {
        var level: UInt8 = 0
        var row = entries.map { CatalogNode.Entry(key: $0.key, payload: .leaf($0.value)) }
        guard !row.isEmpty else { return nil }
        while true {
            var above: [CatalogNode.Entry] = []
            for node in Self.nodes(row) {
                let node = CatalogNode(tree: tree, level: level, entries: node)
                let pointer = fill(try reserve(node.encodedLength), node.encoded(birth: BlockBirth(transaction.generation)))
                above.append(CatalogNode.Entry(key: node.entries[0].key, payload: .child(pointer)))
            }
            if above.count == 1, case .child(let root) = above[0].payload { return root }
            (row, level) = (above, level + 1)
        }
    }

    /// Entries by nodes, three quarters full: the next commits should not have to split all of them.
    private static func nodes(_ entries: [CatalogNode.Entry]) -> [[CatalogNode.Entry]] {
        var (nodes, length): ([[CatalogNode.Entry]], Int) = ([], .max)
        for entry in entries {
            if length > CatalogNode.maximumLength * 3 / 4 - entry.encodedLength {
                nodes.append([])
                length = 0
            }
            nodes[nodes.count - 1].append(entry)
            length += entry.encodedLength
        }
        return nodes
    }
}
