// What the commands print as JSON: the documented names and units.

import CheckpointStore
import StoreFormat
import Units

/// A range of pages.
struct PageRangeObject: Encodable {
    var first: UInt64
    var count: UInt64

    init(_ pages: Range<PageIndex>) {
        first = pages.lowerBound.rawValue
        count = (pages.upperBound - pages.lowerBound).rawValue
    }
}

/// A region of a checkpoint.
struct RegionObject: Encodable {
    var name: String
    var kind: String
    var lengthBytes: UInt64
    var totalPages: UInt64
    /// Pages that are zero and take no space.
    var zeroPages: UInt64
    /// Pages that this checkpoint stored itself.
    var newPages: UInt64
    /// Pages that it shares with its parent.
    var unchangedPages: UInt64

    init(_ region: RegionInfo) {
        name = region.name
        kind = region.kind.name
        lengthBytes = region.byteLength.rawValue
        totalPages = region.pageCount.rawValue
        zeroPages = (region.pageCount - region.storedPages).rawValue
        newPages = region.newPages.rawValue
        unchangedPages = region.storedPages.rawValue - min(region.storedPages, region.newPages).rawValue
    }
}

/// A checkpoint.
struct CheckpointObject: Encodable {
    var name: String
    var id: String
    var createdAt: String
    var createdNanoseconds: UInt64
    var generation: UInt64
    var parentID: String?
    /// Absent when the parent has been deleted.
    var parentName: String?
    /// The nearest ancestor that is still in the lineage, and the names that lead to the checkpoint: from `list`.
    var lineageParentID: String?
    var references: [String]?
    var groupID: String?
    var labels: [String: String]
    var regions: [RegionObject]
    var logicalBytes: UInt64
    var storedBytes: UInt64
    var newPages: UInt64

    init(_ info: CheckpointInfo, parentName: String?) {
        name = info.name
        id = info.id.description
        createdNanoseconds = info.createdNanoseconds
        createdAt = timestamp(nanoseconds: info.createdNanoseconds, isExact: true)
        generation = info.generation.rawValue
        parentID = info.parent?.description
        self.parentName = parentName
        groupID = info.groupID.map { CheckpointID($0).description }
        labels = Dictionary(info.labels.map { ($0.key, $0.value) }) { $1 }
        regions = info.regions.map(RegionObject.init)
        logicalBytes = info.logicalBytes.rawValue
        storedBytes = info.storedBytes.rawValue
        newPages = info.newPages.rawValue
    }
}

extension CheckpointInfo {
    /// Bytes of all its regions, unpacked.
    var logicalBytes: ByteCount { regions.lazy.map(\.byteLength).saturatingSum }
}

extension Snapshot {
    /// The name of a checkpoint's parent; nil when it has none or that was deleted.
    func parentName(of info: CheckpointInfo) throws(StoreError) -> String? {
        guard let parent = info.parent else { return nil }
        do { return try checkpoint(parent).name } catch {
            guard error.code == .notFound else { throw error }
            return nil
        }
    }
}

/// A parent for people.
func readableParent(_ info: CheckpointInfo, name: String?) -> String {
    name ?? (info.parent == nil ? "-" : "(deleted)")
}
