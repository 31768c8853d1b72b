// Where a repair gets what it lacks: another store that holds the same checkpoints.
//
// Invariant: nothing is taken on trust. Blocks are compared with the checksums of this store's pointers, pages with the hashes of its
// leaves; a replica that is damaged or another's gives nothing.

import PageCodec
import StoreFormat
import Threading
import Units

/// Reads a replica for a repair. Keeps what it shows readable as long as it lives. Confined to one thread.
final class PageDonor {
    private struct RegionID: Hashable {
        var checkpoint: CheckpointID
        var key: RegionKey
    }

    private let snapshot: Snapshot
    private let pageHashSeed: UInt64
    /// Nil where the replica has no such checkpoint or region, or can't read its record.
    private var regions: [RegionID: RegionReader?] = [:]
    private var known: [CheckpointID: Bool] = [:]
    private var everyID: [CheckpointID]?

    /// Regions kept open: each keeps some MiB of decoded index at most.
    private static let keptRegions = 64

    /// - Parameter pageHashSeed: that of the store to be repaired.
    /// - Throws: what registering with the replica throws.
    init(_ replica: CheckpointStore, pageHashSeed: UInt64) throws(StoreError) {
        snapshot = try replica.snapshot()
        self.pageHashSeed = pageHashSeed
    }

    /// The bytes of the block that `pointer` names in a replica which is a copy of the medium; nil when it does not have that.
    func block(_ pointer: BlockPointer) throws(StoreError) -> [UInt8]? {
        try readable { () throws(StoreError) in try snapshot.blocks.readBlock(pointer) }
    }

    /// Whether the replica has the checkpoint.
    func has(_ id: CheckpointID) throws(StoreError) -> Bool {
        if let found = known[id] { return found }
        let snapshot = snapshot
        let found = try readable { () throws(StoreError) in try snapshot.store.catalogValue(of: id, in: snapshot.slot) != nil } ?? false
        known[id] = found
        return found
    }

    /// Puts a page with that hash into `buffer`, if one of the checkpoints has it there.
    ///
    /// - Parameter ids: the checkpoints to ask; nil: all that the replica has.
    /// - Returns: false when none has it; `buffer` is undefined then.
    func page(
        _ page: PageIndex, of key: RegionKey, hash: Hash128, from ids: [CheckpointID]?, into buffer: UnsafeMutableRawBufferPointer
    ) throws(StoreError) -> Bool {
        let asked: [CheckpointID]
        if let ids { asked = ids } else { asked = try allIDs() }
        for id in asked {
            guard let region = try region(key, of: id), page.rawValue < region.info.pageCount.rawValue else { continue }
            let target = unsafe Handed(buffer)
            let read = try readable { () throws(StoreError) in
                unsafe try region.read(page: page, into: target.value)
                return true
            }
            if read == true, unsafe pageHash(UnsafeRawPointer(buffer.baseAddress!), seed: pageHashSeed) == hash { return true }
        }
        return false
    }

    /// What a checkpoint of the replica has in each page of a span; nil when it does not have the region, or can't read it.
    func content(of key: RegionKey, span: SpanIndex, in id: CheckpointID) throws(StoreError) -> [PageContent]? {
        guard let region = try region(key, of: id) else { return nil }
        var content = [PageContent](repeating: .zero, count: pagesPerSpan)
        let (first, end) = (span.firstPage.rawValue, region.info.pageCount.rawValue)
        let page = AlignedBuffer(count: pageSize)
        for number in 0..<Int(min(UInt64(pagesPerSpan), end - min(first, end))) {
            let read = try readable { () throws(StoreError) in
                unsafe try region.read(page: span.firstPage + PageCount(number), into: page.bytes)
                return true
            }
            guard read == true else { return nil }
            if unsafe isZero(UnsafeRawBufferPointer(page.bytes)) { continue }
            content[number] = unsafe .page(pageHash(UnsafeRawPointer(page.base), seed: pageHashSeed))
        }
        return content
    }

    /// The replica's record of a checkpoint; nil when it does not have that, or can't read it.
    func record(_ id: CheckpointID) throws(StoreError) -> CheckpointRecord? {
        let snapshot = snapshot
        return try readable { () throws(StoreError) in try snapshot.checkpoint(id) }?.record
    }

    private func allIDs() throws(StoreError) -> [CheckpointID] {
        if let everyID { return everyID }
        let snapshot = snapshot
        let ids = try readable { () throws(StoreError) in try snapshot.store.catalogValues(in: snapshot.slot).map(\.id) } ?? []
        everyID = ids
        return ids
    }

    private func region(_ key: RegionKey, of id: CheckpointID) throws(StoreError) -> RegionReader? {
        let place = RegionID(checkpoint: id, key: key)
        if let known = regions[place] { return known }
        if regions.count >= Self.keptRegions { regions = [:] }
        let snapshot = snapshot
        let info = try readable { () throws(StoreError) in try snapshot.checkpoint(id) }
        let found = info.flatMap { info in
            info.record.regions.first { $0.key == key }.map { RegionReader(checkpoint: snapshot.reader(info), record: $0) }
        }
        regions[place] = .some(found)
        return found
    }

    /// What `body` reads of the replica; nil where that is not there, or damaged.
    private func readable<T>(_ body: () throws(StoreError) -> T) throws(StoreError) -> T? {
        do throws(StoreError) { return try body() } catch {
            guard error.isDamage || error.code == .notFound else { throw error }
            return nil
        }
    }
}
