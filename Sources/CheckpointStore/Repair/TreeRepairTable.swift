// The segment table as a repair of the trees writes it: entries that can be read with what lives counted anew, and those that can't from
// the segments themselves.
//
// Invariants:
// - `live` is what is reachable where the whole index could be read, and never less than that where not.
// - `committedLength` is not below the end of any block that stands in the segment, whoever names it: older generations may.
// - A segment whose entry is lost is free only when the whole index was read, nothing reaches it and its claim is held; it counts as
//   freed by this commit, so that neither the generation before nor a reader loses anything.

import Media
import PageCodec
import StoreFormat
import Units

/// Makes the table of the generation that a repair commits. Confined to the committing thread.
struct TableRecovery {
    private let store: CheckpointStore
    private let survey: TreeSurvey
    private let scan: TreeScan
    private let walk: TreeRepairWalk
    private let generation: Generation
    /// Segments of runs and index that became free; this handle holds their claims.
    private(set) var freed: [SegmentIndex] = []
    /// What is not about the catalogs.
    private var entries: [SegmentIndex: SegmentEntry] = [:]
    /// 64-byte units of the blocks of class 3 that stay.
    private var kept: [SegmentIndex: UInt64] = [:]

    /// - Parameter kept: blocks of class 3 that the new generation still names.
    init(
        _ store: CheckpointStore, _ survey: TreeSurvey, _ scan: TreeScan, _ walk: TreeRepairWalk, kept: [BlockPointer], generation: Generation
    ) throws(StoreError) {
        self.store = store
        self.survey = survey
        self.scan = scan
        self.walk = walk
        self.generation = generation
        for pointer in kept { self.kept[pointer.segment, default: 0] += UInt64(CommitTransaction.liveUnits(Int(pointer.storedLength))) }
        do throws(StoreError) {
            for number in 0..<UInt64(survey.slot.geometry.segmentCount) {
                let segment = SegmentIndex(number)
                let entry: SegmentEntry
                if let known = survey.entry(segment) { entry = try counted(segment, known) } else { entry = try recovered(segment) }
                if entry != .neverUsed { entries[segment] = entry }
            }
        } catch {
            store.unclaim(freed)
            throw error
        }
    }

    // MARK: segments of runs and index

    /// An entry that can be read, with what lives counted anew.
    private mutating func counted(_ segment: SegmentIndex, _ entry: SegmentEntry) throws(StoreError) -> SegmentEntry {
        guard entry.isUsed, entry.segmentClass != .catalog else { return entry }
        var entry = entry
        let live = UInt32(clamping: walk.live[segment] ?? 0)
        entry.live = walk.isWhole ? live : max(entry.live, live)
        entry.written = max(entry.written, entry.live)
        if entry.live == 0, try claim(segment) { return free(entry.segmentClass, entry.birth) }
        return entry
    }

    /// An entry that is lost.
    private mutating func recovered(_ segment: SegmentIndex) throws(StoreError) -> SegmentEntry {
        let found = scan.segments[segment] ?? TreeScan.Segment()
        let live = UInt32(clamping: walk.live[segment] ?? 0)
        if kept[segment] != nil || segment == survey.slot.catalogSegment { return used(.catalog, found, live: 0, segment) }
        let hasContent = found.segmentClass != nil || found.end > 0
        guard live > 0 || (hasContent && !(walk.isWhole)) else {
            if !hasContent { return store.isZero(segment, survey.slot.geometry) ? .neverUsed : free(.runs, found.birth) }
            if found.segmentClass == .catalog { return free(.catalog, found.birth) }
            // Somebody who writes there goes on from what this says.
            return try claim(segment) ? free(found.segmentClass, found.birth) : used(found.segmentClass, found, live: 0, segment)
        }
        if found.segmentClass == .catalog, live == 0 { return free(.catalog, found.birth) }
        return used(found.segmentClass, found, live: walk.isWhole ? live : max(live, bound(found)), segment)
    }

    /// What may live in a segment of which nobody can say what does.
    private func bound(_ found: TreeScan.Segment) -> UInt32 {
        // Where damaged blocks may be, as many pages as the smallest could have.
        let perUnit = found.segmentClass == .runs ? UInt64(pagesPerRun) : 1
        return UInt32(clamping: max(1, UInt64(survey.slot.geometry.segmentSize) / UInt64(blockAlignment) * perUnit))
    }

    private func used(_ segmentClass: SegmentClass?, _ found: TreeScan.Segment, live: UInt32, _ segment: SegmentIndex) -> SegmentEntry {
        let (unit, size) = (Int(survey.slot.geometry.commitUnit), Int(survey.slot.geometry.segmentSize))
        // Without the whole index, damaged blocks behind the last sound one may be needed.
        let end = walk.isWhole ? max(found.end, walk.ends[segment] ?? 0, SegmentHeader.encodedLength) : size
        return SegmentEntry(
            isUsed: true, segmentClass: segmentClass ?? .runs, committedLength: UInt32(min(size, roundUp(end, to: unit))), live: live,
            written: max(live, walk.isWhole ? UInt32(clamping: found.units) : live), birth: found.birth, freedGeneration: Generation(UInt64(0)))
    }

    private func free(_ segmentClass: SegmentClass?, _ birth: BlockBirth) -> SegmentEntry {
        SegmentEntry(
            isUsed: false, segmentClass: segmentClass ?? .runs, committedLength: 0, live: 0, written: 0, birth: birth,
            freedGeneration: generation)
    }

    private mutating func claim(_ segment: SegmentIndex) throws(StoreError) -> Bool {
        guard try store.lockClaim(segment) else { return false }
        freed.append(segment)
        return true
    }

    // MARK: class 3, and the nodes

    /// Writes the table, which counts itself too. Returns its root and how many segments are used.
    func write(_ writer: TreeWriter, depth: UInt8) throws(StoreError) -> (root: BlockPointer?, used: UInt32) {
        let mark = writer.mark
        while true {
            let before = writer.parts.count
            let leaves = leaves(with: writer.parts.map(\.segment))
            let places = try reserve(leaves, depth, writer)
            guard writer.parts.count == before else {
                // One more segment may need one more leaf.
                writer.goBack(to: mark)
                continue
            }
            return fill(places, entries(writer), depth, writer)
        }
    }

    private typealias Places = [[UInt64: TreeWriter.Place]]

    /// The first segments of the leaves that there must be.
    private func leaves(with segments: [SegmentIndex]) -> Set<UInt64> {
        let width = SegmentTable.segmentsPerNode(level: 0)
        return Set((segments + entries.keys + kept.keys).map { $0.rawValue / width * width })
    }

    /// By level, the places of the nodes by their first segments.
    private func reserve(_ leaves: Set<UInt64>, _ depth: UInt8, _ writer: TreeWriter) throws(StoreError) -> Places {
        var places: Places = []
        var row = leaves
        for level in 0...depth {
            var reserved: [UInt64: TreeWriter.Place] = [:]
            let width = SegmentTable.segmentsPerNode(level: level)
            for first in row.sorted() {
                let children = level == 0 ? 0 : places[Int(level) - 1].keys.count { $0 / width * width == first }
                let length = level == 0 ? TableLeaf.encodedLength : TableInner.encodedLength(children: children)
                reserved[first] = try writer.reserve(length)
            }
            places.append(reserved)
            if level < depth {
                let above = SegmentTable.segmentsPerNode(level: level + 1)
                row = Set(row.map { $0 / above * above })
            }
        }
        return places
    }

    /// All entries, those of class 3 with what the commit writes.
    private func entries(_ writer: TreeWriter) -> [SegmentIndex: SegmentEntry] {
        var entries = entries
        let parts = Dictionary(uniqueKeysWithValues: writer.usedParts.map { ($0.segment, $0) })
        for segment in Set(entries.filter { $0.value.isUsed && $0.value.segmentClass == .catalog }.keys).union(parts.keys).union(kept.keys) {
            let old = survey.entry(segment)
            let live = UInt32(clamping: (kept[segment] ?? 0) + UInt64(parts[segment]?.units ?? 0))
            guard live > 0 || parts[segment] != nil else {
                entries[segment] = free(.catalog, entries[segment]?.birth ?? BlockBirth(UInt64(0)))
                continue
            }
            var entry = entries[segment] ?? .neverUsed
            if let part = parts[segment] {
                let end = UInt32(roundUp(part.end, to: Int(survey.slot.geometry.commitUnit)))
                if part.isFresh { entry = .neverUsed }
                entry.committedLength = max(part.isFresh ? 0 : entry.committedLength, end)
                entry.birth = BlockBirth(generation)
                // Nobody knows what was written before where the entry is lost.
                entry.written = (old == nil || part.isFresh ? UInt32(clamping: kept[segment] ?? 0) : entry.written) + part.units
            }
            (entry.isUsed, entry.segmentClass, entry.freedGeneration) = (true, .catalog, Generation(UInt64(0)))
            entry.live = live
            entry.written = max(entry.written, live)
            entries[segment] = entry
        }
        return entries
    }

    private func fill(
        _ places: Places, _ entries: [SegmentIndex: SegmentEntry], _ depth: UInt8, _ writer: TreeWriter
    ) -> (root: BlockPointer?, used: UInt32) {
        let birth = BlockBirth(generation)
        var below: [UInt64: BlockPointer] = [:]
        for level in 0...depth {
            var pointers: [UInt64: BlockPointer] = [:]
            for (first, place) in places[Int(level)].sorted(by: { $0.key < $1.key }) {
                let step = level == 0 ? 1 : SegmentTable.segmentsPerNode(level: level - 1)
                let starts = (0..<UInt64(SegmentTable.fanout)).map { first + $0 * step }
                let bytes =
                    level == 0
                    ? TableLeaf(firstSegment: SegmentIndex(first), entries: starts.map { entries[SegmentIndex($0)] ?? .neverUsed }).encoded(birth: birth)
                    : TableInner(firstSegment: SegmentIndex(first), level: level, children: starts.map { below[$0] }).encoded(birth: birth)
                pointers[first] = writer.fill(place, bytes)
            }
            below = pointers
        }
        return (below[0], UInt32(clamping: entries.values.count { $0.isUsed }))
    }
}

extension CheckpointStore {
    /// Whether a segment's first page is zero: nothing was ever written there, or it was given back to the medium since.
    fileprivate func isZero(_ segment: SegmentIndex, _ geometry: Geometry) -> Bool {
        let buffer = AlignedBuffer(count: pageSize)
        let isReadable = unsafe (try? medium.read(at: geometry.offset(of: segment), into: buffer.bytes)) != nil
        return unsafe isReadable && PageCodec.isZero(UnsafeRawBufferPointer(buffer.bytes))
    }
}
