// Where the segments of a damaged store lie: from any slot that is left, or else from the segments' own headers.
//
// Invariant: a layout is one that sound bytes of the store itself state, with their checksum.

import Media
import StoreFormat
import Units

/// What is known of a damaged store before its segments are read.
struct SalvageLayout: Sendable {
    var geometry: Geometry
    var uuid: StoreUUID
    /// The newest slot that is left; nil: none.
    var slot: Slot?
    /// True when the slots are as they should be, so that what the newest one names is all there is.
    var isNewest: Bool

    /// Finds the layout. Reads the slots, and without any the medium's pages until enough segment headers are found.
    /// - Throws: `.notAStore` when there is neither.
    static func find(on medium: any Medium) throws(StoreError) -> SalvageLayout {
        if let found = fromSlots(medium) { return found }
        if let found = fromHeaders(medium) { return found }
        throw StoreError(
            .notAStore, "there is neither a superblock slot nor a segment header of a checkpoint store",
            remedy: "Check that this is the right medium.", medium: medium.name)
    }

    // MARK: slots

    private static func fromSlots(_ medium: any Medium) -> SalvageLayout? {
        var slots: [Slot] = []
        for place in [MediumOffset.zero] + Geometry.twinOffsets {
            for position in 0..<Slot.ringLength {
                guard let bytes = try? medium.bytes(at: place + ByteCount(position * Slot.encodedLength), count: Slot.encodedLength),
                    let slot = unsafe try? Slot.decode(bytes.span.bytes, position: position, twin: place == .zero ? 0 : 1),
                    place == .zero || slot.geometry.twinOffset == place
                else { continue }
                slots.append(slot)
            }
        }
        guard let newest = slots.max(by: { ($0.generation, $0.kind.rawValue) < ($1.generation, $1.kind.rawValue) }) else { return nil }
        let ring = try? SlotRing.read(medium, generation: nil)
        return SalvageLayout(
            geometry: newest.geometry, uuid: newest.uuid, slot: newest,
            isNewest: ring.map { $0.lost == nil && $0.slot.generation == newest.generation } ?? false)
    }

    // MARK: segment headers

    private struct Origin: Hashable {
        var uuid: StoreUUID
        var segmentSize: UInt32
        var dataOffset: MediumOffset
    }

    /// Headers that are looked for before they are counted: an earlier store of other sizes may have left some.
    private static let enoughHeaders = 256

    private static func fromHeaders(_ medium: any Medium) -> SalvageLayout? {
        var found: [Origin: (count: Int, generation: Generation)] = [:]
        var count = 0
        var offset = Geometry.twinOffsets[0].rawValue * 2
        while count < enoughHeaders, offset + UInt64(SegmentHeader.encodedLength) <= medium.size.rawValue {
            if let header = header(medium, at: MediumOffset(offset)), let origin = origin(of: header, at: offset) {
                count += 1
                let known = found[origin] ?? (0, header.baseGeneration)
                found[origin] = (known.count + 1, max(known.generation, header.baseGeneration))
            }
            offset += UInt64(pageSize)
        }
        guard let best = found.max(by: { ($0.value.count, $0.value.generation) < ($1.value.count, $1.value.generation) })?.key else { return nil }
        let segments = (medium.size.rawValue - best.dataOffset.rawValue + UInt64(best.segmentSize) - 1) / UInt64(best.segmentSize)
        let geometry = Geometry(
            segmentSize: best.segmentSize, commitUnit: UInt32(pageSize), segmentCount: UInt32(clamping: segments),
            twinOffset: MediumOffset(best.dataOffset.rawValue / 2))
        return SalvageLayout(geometry: geometry, uuid: best.uuid, slot: nil, isNewest: false)
    }

    static func header(_ medium: any Medium, at offset: MediumOffset) -> SegmentHeader? {
        guard let bytes = try? medium.bytes(at: offset, count: SegmentHeader.encodedLength),
            unsafe (try? Block.peek(bytes.span.bytes)) != nil
        else { return nil }
        return unsafe try? SegmentHeader.decode(bytes.span.bytes)
    }

    /// The layout in which a header's segment starts at `offset`; nil when there is none.
    private static func origin(of header: SegmentHeader, at offset: UInt64) -> Origin? {
        let (before, overflow) = header.segment.rawValue.multipliedReportingOverflow(by: UInt64(header.segmentSize))
        guard !overflow, before <= offset else { return nil }
        let dataOffset = MediumOffset(offset - before)
        let geometry = Geometry(
            segmentSize: header.segmentSize, commitUnit: UInt32(pageSize), segmentCount: 1, twinOffset: MediumOffset(dataOffset.rawValue / 2))
        guard dataOffset.rawValue % 2 == 0, (try? geometry.check()) != nil else { return nil }
        return Origin(uuid: header.storeUUID, segmentSize: header.segmentSize, dataOffset: dataOffset)
    }
}
