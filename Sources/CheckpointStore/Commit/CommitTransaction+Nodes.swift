// Placing and writing the nodes that a commit has edited: of the catalog, the segment table and forwarding.
//
// Invariants:
// - Nodes are written behind what is committed, in segments that are the catalog's or free; a fresh one is zero behind them.
// - What each node adds to its segment's `live`, and the one that it replaces takes off, is accounted before anything is written.

import Media
import PageCodec
import StoreFormat
import Units

extension CommitTransaction {
    private struct Placement {
        var node: any CommitNode
        var segment: SegmentIndex
        var offset: Int
    }

    /// Finds places for all edited nodes (which segments are touched decides which table nodes are edited, and so
    /// on until nothing is added), then writes them.
    func writeNodes() throws(StoreError) {
        try moves.settle()
        var placements: [Placement]
        var ends: [(segment: SegmentIndex, start: Int, end: Int)]
        while true {
            let before = (table.numberOfDirtyNodes, freshCatalogSegments.count)
            let nodes = editedNodes()
            for origin in replaced(by: nodes) { try table.touch(origin.segment) }
            (placements, ends) = try place(nodes)
            for end in ends { try table.touch(end.segment) }
            if before == (table.numberOfDirtyNodes, freshCatalogSegments.count) { break }
        }
        try account(placements, ends: ends)
        try write(placements, ends: ends)
        slot.catalogByID = byID.rootPointer
        slot.catalogByName = byName.rootPointer
        slot.lineage = lineage.rootPointer
        slot.forwarding = forwarding.rootPointer
        slot.segmentTable = table.rootPointer
        settleFeatures()
    }

    /// Brings the features and their names in line with the roots.
    func settleFeatures() {
        slot.incompat = slot.forwarding == nil ? slot.incompat & ~Feature.forwarding : slot.incompat | Feature.forwarding
        // Names of features that this version does not know stay as they are.
        let known = Feature.names.map { ($0.mask.rawValue, $0.bit) }
        slot.featureNames =
            Feature.names(incompat: slot.incompat, readOnlyCompat: slot.readOnlyCompat, compat: slot.compat)
            + slot.featureNames.filter { name in !known.contains { $0 == (name.mask.rawValue, name.bit) } }
    }

    private func editedNodes() -> [any CommitNode] {
        moves.changedTables as [any CommitNode] + byID.dirtyNodes() + byName.dirtyNodes() + lineage.dirtyNodes() + forwarding.dirtyNodes() + table.dirtyNodes()
    }

    private func replaced(by nodes: [any CommitNode]) -> [BlockPointer] {
        nodes.compactMap(\.origin) + moves.dropped + byID.dropped + byName.dropped + lineage.dropped + forwarding.dropped + table.dropped
    }

    /// Lays the nodes out behind what is committed, claiming segments as needed.
    private func place(
        _ nodes: [any CommitNode]
    ) throws(StoreError) -> ([Placement], [(segment: SegmentIndex, start: Int, end: Int)]) {
        let size = Int(slot.geometry.segmentSize)
        let unit = Int(slot.geometry.commitUnit)
        var ends: [(segment: SegmentIndex, start: Int, end: Int)] = []
        if let current = base.catalogSegment {
            let start = Int(try committedLength(of: current))
            ends.append((current, start, start))
        }
        var fresh = freshCatalogSegments[...]
        var placements: [Placement] = []
        for node in nodes {
            let length = roundUp(node.encodedLength, to: blockAlignment)
            if ends.isEmpty || roundUp(ends[ends.count - 1].end + length, to: unit) > size {
                if fresh.isEmpty {
                    freshCatalogSegments.append(try claimCatalogSegment())
                    fresh = freshCatalogSegments.suffix(1)
                }
                let claim = fresh.removeFirst()
                ends.append((claim.segment, 0, SegmentHeader.encodedLength))
            }
            placements.append(Placement(node: node, segment: ends[ends.count - 1].segment, offset: ends[ends.count - 1].end))
            ends[ends.count - 1].end += length
        }
        return (placements, ends.filter { $0.end > $0.start })
    }

    /// A segment of the base's that is there in the new generation too.
    private func claimCatalogSegment() throws(StoreError) -> SegmentClaim {
        let limit = min(base.geometry.segmentCount, slot.geometry.segmentCount)
        return try store.claimSegment(.catalog, base: base, below: limit, mayUseReserve: true)
    }

    private func committedLength(of segment: SegmentIndex) throws(StoreError) -> UInt32 {
        var reader = TableReader(store: store, slot: base)
        let entry = try reader.entry(segment)
        guard entry.isUsed, entry.segmentClass == .catalog, entry.committedLength <= base.geometry.segmentSize,
            entry.committedLength % base.geometry.commitUnit == 0
        else { throw inconsistent("segment \(segment), where commits append, is no segment that a catalog can be in") }
        return entry.committedLength
    }

    /// Brings the entries of the catalog's segments up to date: what is written, what it replaces.
    private func account(
        _ placements: [Placement], ends: [(segment: SegmentIndex, start: Int, end: Int)]
    ) throws(StoreError) {
        let unit = Int(slot.geometry.commitUnit)
        let birth = BlockBirth(generation)
        for end in ends {
            var isNew = false
            try table.update(end.segment) { entry in
                isNew = !entry.isUsed
                if isNew { entry = .neverUsed }
                entry.isUsed = true
                entry.segmentClass = .catalog
                entry.committedLength = UInt32(roundUp(end.end, to: unit))
                entry.birth = birth
            }
            if isNew { try raise(&slot.usedSegments) }
        }
        for placement in placements {
            let units = Self.liveUnits(placement.node.encodedLength)
            var entry = try table.entry(placement.segment)
            try raise(&entry.live, by: units)
            try raise(&entry.written, by: units)
            let updated = entry
            try table.update(placement.segment) { $0 = updated }
        }
        if let last = ends.last { slot.catalogSegment = last.segment }
        for origin in replaced(by: placements.map(\.node)) {
            let units = Self.liveUnits(Int(origin.storedLength))
            var entry = try table.entry(origin.segment)
            guard entry.isUsed, entry.live >= units else {
                throw StoreError(
                    .corrupt, "the segment table counts less than is live in segment \(origin.segment)",
                    remedy: "Run `ckstore verify`.", medium: store.medium.name)
            }
            entry.live -= units
            let updated = entry
            try table.update(origin.segment) { $0 = updated }
            if updated.live == 0, slot.catalogSegment != origin.segment {
                try free(origin.segment)
                freedCatalogSegments.append(origin.segment)
            }
        }
    }

    /// The share of a block in its segment's `live`: a run's listed pages; else its bytes in steps of 64.
    static func liveUnits(of pointer: BlockPointer, places: UInt16) -> UInt32 {
        pointer.kind == .run ? UInt32(places.nonzeroBitCount) : liveUnits(Int(pointer.storedLength))
    }

    /// The share of a block that is no run in its segment's `live`: its bytes in steps of 64.
    static func liveUnits(_ length: Int) -> UInt32 { UInt32(roundUp(length, to: blockAlignment) / blockAlignment) }

    private func write(
        _ placements: [Placement], ends: [(segment: SegmentIndex, start: Int, end: Int)]
    ) throws(StoreError) {
        let unit = Int(slot.geometry.commitUnit)
        var remaining = placements[...]
        for end in ends {
            let buffer = AlignedBuffer(count: roundUp(end.end, to: unit) - end.start)
            buffer.clear(0..<buffer.count)
            if end.start == 0 { unsafe buffer.bytes.copyBytes(from: header(of: end.segment)) }
            while let placement = remaining.first, placement.segment == end.segment {
                remaining.removeFirst()
                let bytes = placement.node.encoded(birth: BlockBirth(generation))
                unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[(placement.offset - end.start)...])
                    .copyBytes(from: bytes)
                placement.node.stored = try pointer(to: bytes, placement)
            }
            let offset = slot.geometry.offset(of: end.segment) + ByteCount(end.start)
            try onMedium { () throws(MediumError) in
                unsafe try store.medium.write(at: offset, UnsafeRawBufferPointer(buffer.bytes))
            }
            if end.start == 0 { try clear(end.segment, from: buffer.count) }
        }
    }

    /// Makes the rest of a fresh segment zero: nodes of an earlier store there would look like those of commits whose slots
    /// were lost. What is zero already is left as it is.
    func clear(_ segment: SegmentIndex, from start: Int) throws(StoreError) {
        let size = Int(slot.geometry.segmentSize)
        guard start < size else { return }
        let buffer = AlignedBuffer(count: min(size - start, Self.clearedBytes))
        for position in stride(from: start, to: size, by: buffer.count) {
            let piece = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<min(buffer.count, size - position)])
            let offset = slot.geometry.offset(of: segment) + ByteCount(position)
            // Bytes that can't be read are not zero; writing them may heal them.
            let isReadable = unsafe (try? store.medium.read(at: offset, into: piece)) != nil
            if unsafe isReadable && isZero(UnsafeRawBufferPointer(piece)) { continue }
            buffer.clear(0..<piece.count)
            try onMedium { () throws(MediumError) in
                unsafe try store.medium.write(at: offset, UnsafeRawBufferPointer(rebasing: buffer.bytes[..<piece.count]))
            }
        }
    }

    private static let clearedBytes = 1 << 20

    private func pointer(to bytes: [UInt8], _ placement: Placement) throws(StoreError) -> BlockPointer {
        guard let header = unsafe try? Block.peek(bytes.span.bytes) else { preconditionFailure("encoders seal their blocks") }
        return BlockPointer(
            segment: placement.segment, offset: SegmentOffset(placement.offset), storedLength: header.storedLength,
            kind: header.kind, codec: .raw, keyID: 0, birth: header.birth, checksum: header.checksum)
    }

    func header(of segment: SegmentIndex) -> [UInt8] {
        SegmentHeader(
            storeUUID: slot.uuid, segment: segment, segmentClass: .catalog, baseGeneration: base.generation,
            segmentSize: slot.geometry.segmentSize, birth: BlockBirth(generation)
        ).encoded()
    }
}
