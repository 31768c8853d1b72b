// Checking what stands beside the trees: the slots, the segment table and the segments' headers.
//
// Invariant: what is wrong here is damage of the store as a whole; checkpoints may be readable all the same.

import Media
import StoreFormat
import Units

extension Verifier {
    /// The slots of older generations, of which each has two.
    func slots() throws(StoreError) {
        guard store.pinnedGeneration == nil else { return }
        var newest = slot
        while true {
            let reasons = try SlotRing.damagedSlots(store.medium, newest: newest)
            // A commit under way may have half a slot where it writes: damage is what stays when nothing has moved on.
            let now = reasons.isEmpty ? newest : try store.newestSlot()
            guard now.generation != newest.generation else {
                for reason in reasons { try noteStore(reason) }
                return
            }
            newest = now
        }
    }

    /// The segment table, with each used segment's header. False when part of it can't be read.
    func table() throws(StoreError) -> Bool {
        guard let root = slot.segmentTable else {
            if slot.usedSegments != 0 { try noteStore("there is no segment table for \(slot.usedSegments) used segments") }
            return true
        }
        var entries: [(SegmentIndex, SegmentEntry)] = []
        var isWhole = true
        try tableNode(root, level: slot.geometry.tableDepth, first: SegmentIndex(UInt64(0)), &entries, &isWhole)
        for (segment, entry) in entries { try check(segment, entry) }
        let used = entries.filter { $0.1.isUsed }
        if isWhole, used.count != Int(slot.usedSegments) {
            try noteStore("\(used.count) segments are in use, but usedSegments in the superblock is \(slot.usedSegments)")
        }
        // A part of the table would make all that it does not name seem misplaced.
        if isWhole { trees.setSegments(Dictionary(uniqueKeysWithValues: used)) }
        return isWhole
    }

    private func tableNode(
        _ pointer: BlockPointer, level: UInt8, first: SegmentIndex, _ entries: inout [(SegmentIndex, SegmentEntry)],
        _ isWhole: inout Bool
    ) throws(StoreError) {
        do throws(StoreError) {
            guard level > 0 else {
                let leaf = try store.readTableLeaf(pointer, first: first)
                trees.countSound(pointer)
                for (index, entry) in leaf.entries.enumerated() where entry != .neverUsed {
                    entries.append((SegmentIndex(first.rawValue + UInt64(index)), entry))
                }
                return
            }
            let node = try store.readTableInner(pointer, level: level, containing: first)
            trees.countSound(pointer)
            for (index, child) in node.children.enumerated() {
                guard let child else { continue }
                let start = first.rawValue + UInt64(index) * SegmentTable.segmentsPerNode(level: level - 1)
                try tableNode(child, level: level - 1, first: SegmentIndex(start), &entries, &isWhole)
            }
        } catch {
            isWhole = false
            _ = try trees.note(error, block: pointer, isOfBlock: true)
        }
    }

    private func check(_ segment: SegmentIndex, _ entry: SegmentEntry) throws(StoreError) {
        let layout = slot.geometry
        guard segment.rawValue < UInt64(layout.segmentCount) else {
            return try noteStore("there is an entry for segment \(segment), behind the last one")
        }
        guard entry.isUsed else {
            if entry.freedGeneration > slot.generation {
                try noteStore("segment \(segment) was freed in generation \(entry.freedGeneration), which is still to come")
            }
            return
        }
        let length = entry.committedLength
        if length == 0 || length % layout.commitUnit != 0 || length > layout.segmentSize {
            try noteStore("committedLength of segment \(segment) is \(length)")
        }
        if entry.live > entry.written, slot.incompat & Feature.draft == 0 {
            try noteStore("live of segment \(segment) is \(entry.live), though only \(entry.written) was ever written")
        }
        try checkHeader(segment, entry)
    }

    private func checkHeader(_ segment: SegmentIndex, _ entry: SegmentEntry) throws(StoreError) {
        let place = slot.geometry.offset(of: segment)
        let bytes: [UInt8]
        do throws(StoreError) { bytes = try store.medium.bytes(at: place, count: SegmentHeader.encodedLength) } catch {
            guard error.isDamage else { throw error }
            return try noteStore("the header of segment \(segment) can't be read: \(error.reason)", at: place)
        }
        let header: SegmentHeader
        do {
            _ = unsafe try Block.peek(bytes.span.bytes)
            header = unsafe try SegmentHeader.decode(bytes.span.bytes)
        } catch { return try noteStore("segment \(segment) has no segment header: \(error)", at: place) }
        guard header.storeUUID == slot.uuid, header.segment == segment, header.segmentClass == entry.segmentClass,
            header.segmentSize == slot.geometry.segmentSize
        else { return try noteStore("the header of segment \(segment) is of another store, segment, class or size", at: place) }
        if header.baseGeneration > slot.generation, store.pinnedGeneration == nil {
            try noteStore(
                "superblock lost: segment \(segment) was claimed after generation \(header.baseGeneration), but the newest slot "
                    + "is of generation \(slot.generation)", at: place)
        }
    }

    /// What was reached must be counted by the table. What it counts beyond that is lost space.
    func checkLive() throws(StoreError) {
        let (entries, live, uncounted) = trees.segmentCounts
        for (segment, pointer) in uncounted.sorted(by: { $0.key < $1.key }) {
            try noteStore(
                "the segment table does not count segment \(segment) as written where there is a \(pointer.kind)",
                at: slot.geometry.position(of: pointer))
        }
        for (segment, units) in live.sorted(by: { $0.key < $1.key }) {
            guard let entry = entries[segment], units > UInt64(entry.live) else { continue }
            try noteStore("live of segment \(segment) is \(entry.live), but \(units) are reachable")
        }
        guard report.isSound else { return }
        var (pages, blocks) = (UInt64(0), UInt64(0))
        for (segment, entry) in entries {
            let lost = UInt64(entry.live) - (live[segment] ?? 0)
            if entry.segmentClass == .runs { pages += lost } else { blocks += lost }
        }
        trees.setLost(pages: PageCount(pages), bytes: ByteCount(blocks * UInt64(blockAlignment)))
    }
}
