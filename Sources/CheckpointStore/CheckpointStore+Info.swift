// What a store holds and where its space is.

import Media
import StoreFormat
import Units

/// The figures of a store.
public struct StoreInfo: Sendable {
    public var medium: String
    public var traits: MediumTraits
    public var uuid: StoreUUID
    public var generation: Generation
    public var geometry: Geometry
    public var checkpointCount: Int
    /// Names of the features that the store uses.
    public var features: [String]
    public var usedSegments: Int
    public var reserveSegments: Int
    /// Bytes that all regions of all checkpoints would take unpacked, zeros included; 2^64 - 1 where they are more.
    public var logicalBytes: ByteCount
    /// Bytes of pages that are not zero, in all checkpoints.
    public var nonZeroBytes: ByteCount
    /// Bytes of page runs that checkpoints reach.
    public var runBytes: ByteCount
    /// Bytes of index blocks that checkpoints reach.
    public var indexBytes: ByteCount
    /// Bytes of the catalog and the segment table.
    public var catalogBytes: ByteCount
    /// The part of run and index bytes that several checkpoints reach.
    public var sharedBytes: ByteCount
    /// Committed bytes that nothing reaches.
    public var deadBytes: ByteCount
    /// Bytes that new checkpoints can fill, the reserve not counted.
    public var freeBytes: ByteCount
    /// Bytes of free segments that still take space of the medium: what was being read when it became free, or was never committed. Deleting
    /// and compacting give them back. Nil where the medium can't say (devices), and for
    /// an older generation.
    public var freeAllocatedBytes: ByteCount?
    /// The segments that are in use, ascending.
    public var segments: [SegmentInfo]

    /// Everything reachable.
    public var liveBytes: ByteCount { runBytes + indexBytes + catalogBytes }
    /// Unpacked bytes for each byte that is live; nil for an empty store.
    public var ratio: Double? {
        liveBytes.rawValue == 0 ? nil : Double(logicalBytes.rawValue) / Double(liveBytes.rawValue)
    }
}

extension CheckpointStore {
    /// Counts where the store's space is. Reads the whole index, no page data.
    public func info() throws(StoreError) -> StoreInfo { try info(of: try snapshot()) }

    /// The same as `snapshot`, one of this store, shows it.
    public func info(of snapshot: Snapshot) throws(StoreError) -> StoreInfo {
        precondition(snapshot.store === self, "the snapshot must be of this store")
        let slot = snapshot.slot
        var info = StoreInfo(
            medium: medium.name, traits: medium.traits, uuid: slot.uuid, generation: slot.generation, geometry: slot.geometry,
            checkpointCount: Int(slot.checkpointCount), features: slot.featureNames.map(\.name),
            usedSegments: Int(slot.usedSegments), reserveSegments: Int(slot.reserveSegments), logicalBytes: .zero,
            nonZeroBytes: .zero, runBytes: .zero, indexBytes: .zero, catalogBytes: .zero, sharedBytes: .zero, deadBytes: .zero,
            freeBytes: .zero, freeAllocatedBytes: nil, segments: [])
        let reachable = try countTrees(slot, &info)
        try countSegments(slot, reachable, &info)
        // What was free in an older generation may be used by now.
        guard pinnedGeneration == nil else { return info }
        let free = try freeSpace(in: slot)
        info.freeAllocatedBytes = free.isKnown ? free.bytes : nil
        return info
    }

    /// Counts what checkpoints reach. Returns how many bytes of each segment that is.
    private func countTrees(_ slot: Slot, _ info: inout StoreInfo) throws(StoreError) -> [SegmentIndex: UInt64] {
        var (runs, index, shared) = (UInt64(0), UInt64(0), UInt64(0))
        var reachable: [SegmentIndex: UInt64] = [:]
        let blocks = blocks(in: slot)
        let count = { (record: CheckpointRecord) in
            for region in record.regions {
                info.logicalBytes = info.logicalBytes.addingSaturating(region.byteLength)
                info.nonZeroBytes = info.nonZeroBytes.addingSaturating(region.storedPages.bytes)
            }
        }
        try TreeWalk(blocks: blocks).walk(try catalogValues(in: slot), records: count) { (block) throws(StoreError) in
            let place = try blocks.resolve(block.pointer).pointer
            let bytes = UInt64(roundUp(Int(place.storedLength), to: blockAlignment))
            reachable[place.segment, default: 0] += bytes
            if block.pointer.kind == .run { runs += bytes } else { index += bytes }
            if block.sharers > 1 { shared += bytes }
        }
        info.runBytes = ByteCount(runs)
        info.indexBytes = ByteCount(index)
        info.sharedBytes = ByteCount(shared)
        return reachable
    }

    private func countSegments(
        _ slot: Slot, _ reachable: [SegmentIndex: UInt64], _ info: inout StoreInfo
    ) throws(StoreError) {
        var table = TableReader(store: self, slot: slot)
        var committed: UInt64 = 0
        var number: UInt64 = 0
        while number < UInt64(slot.geometry.segmentCount) {
            guard let leaf = try table.leaf(of: SegmentIndex(number)) else {
                number += UInt64(TableReader.fanOut)
                continue
            }
            for (index, entry) in leaf.entries.enumerated() where entry.isUsed {
                let segment = SegmentIndex(number + UInt64(index))
                let summary = SegmentInfo(
                    segment, entry, reachableBytes: reachable[segment] ?? 0, catalogSegment: slot.catalogSegment)
                committed += UInt64(entry.committedLength)
                if entry.segmentClass == .catalog { info.catalogBytes += summary.liveBytes }
                info.segments.append(summary)
            }
            number += UInt64(TableReader.fanOut)
        }
        let segmentSize = UInt64(slot.geometry.segmentSize)
        let used = UInt64(slot.usedSegments) * segmentSize
        let keep = UInt64(slot.reserveSegments) * segmentSize
        let unused = UInt64(slot.geometry.segmentCount) * segmentSize - used
        info.freeBytes = ByteCount(unused > keep ? unused - keep : 0)
        let live = info.liveBytes.rawValue
        info.deadBytes = ByteCount(committed > live ? committed - live : 0)
    }
}
