// What a report shows, as values: the page is drawn from them, and programs read them as JSON.
//
// Invariants:
// - Sizes are bounded whatever the store has: see `ReportLimits`.
// - Numbers are those of one snapshot. Names end with their unit. Places in other lists are indexes; absent: there is none.
// - A cell of a map is a sum over its pages, so that cells, and changes along the lineage, can be added up.

import StoreFormat
import Units

/// The most that a report holds.
public enum ReportLimits {
    /// Checkpoints, if not told otherwise.
    public static let checkpoints = 2000
    /// Cells in the map of a region.
    public static let cellsPerRegion = 4096
    /// Cells that change, in all maps of all checkpoints together: about 10 MiB of the page.
    public static let changedCells = 1 << 19
    /// Regions, by their names; the largest ones.
    public static let regions = 256
    /// Cells in the map of segments.
    public static let segmentCells = 1 << 14
}

/// A store at one moment.
public struct ReportData: Codable, Sendable {
    /// Of this form of the data: 1.
    public var formatVersion = 1
    /// When the report was made, since 1970-01-01 UTC.
    public var madeMilliseconds: UInt64
    public var store: StoreFigures
    /// All nodes of the lineage, parents before their children.
    public var lineage: [LineageNode]
    /// The oldest first.
    public var checkpoints: [CheckpointFigures]
    /// Checkpoints that are older than those listed.
    public var omittedCheckpoints: Int
    /// Names that move from checkpoint to checkpoint.
    public var references: [MovingName]
    /// Regions by name, the largest first; checkpoints name them by their place here.
    public var regions: [RegionMap]
    public var omittedRegions: Int
    public var segments: SegmentMap
}

/// The store and its medium.
public struct StoreFigures: Codable, Sendable {
    /// Its locator.
    public var medium: String
    public var kind: String
    public var uuid: String
    public var generation: UInt64
    public var features: [String]
    public var checkpointCount: Int
    public var sizeBytes: UInt64
    public var segmentBytes: UInt64
    public var segmentCount: Int
    public var usedSegments: Int
    public var reserveSegments: Int
    /// Of all regions of all checkpoints, zeros included.
    public var logicalBytes: UInt64
    public var nonZeroBytes: UInt64
    public var runBytes: UInt64
    public var indexBytes: UInt64
    public var catalogBytes: UInt64
    /// The part of run and index bytes that several checkpoints reach.
    public var sharedBytes: UInt64
    /// Written, and reached by nothing any more.
    public var deadBytes: UInt64
    /// In used segments, not written yet.
    public var unwrittenBytes: UInt64
    public var freeBytes: UInt64
    public var reserveBytes: UInt64
    /// What compaction would give back, as an estimate.
    public var compactionGainBytes: UInt64
}

/// A node of the lineage.
public struct LineageNode: Codable, Sendable {
    public var id: CheckpointID
    /// Its parent's place in the list; absent: none, or not known.
    public var parent: Int?
    /// The checkpoint's place in the list of checkpoints; absent: it has been deleted.
    public var checkpoint: Int?
    /// True when it has a parent which is older than all that the report shows.
    public var isCut: Bool
}

/// A name that can be moved.
public struct MovingName: Codable, Sendable {
    public var name: String
    public var checkpoint: Int
}

/// A checkpoint.
public struct CheckpointFigures: Codable, Sendable {
    public var id: CheckpointID
    public var name: String
    /// The nearest ancestor that is still there and listed: what `changes` are counted against; absent: none.
    public var parent: Int?
    /// How many such ancestors it has.
    public var depth: Int
    /// When it was begun, since 1970-01-01 UTC.
    public var createdMilliseconds: UInt64
    public var generation: UInt64
    public var labels: [Label]
    /// Equal for checkpoints that were committed together; absent: alone.
    public var group: String?
    public var logicalBytes: UInt64
    /// Runs that it wrote itself.
    public var storedBytes: UInt64
    /// Index blocks that it wrote itself, and names.
    public var indexBytes: UInt64
    public var newPages: UInt64
    public var regions: [RegionFigures]
}

/// A region as one checkpoint has it.
public struct RegionFigures: Codable, Sendable {
    /// Its place in the list of regions.
    public var region: Int
    public var lengthBytes: UInt64
    public var nonZeroPages: UInt64
    /// Pages that it stored itself.
    public var newPages: UInt64
    /// Pages whose content differs from that of the parent's region; of one without such a parent, those that are not zero.
    public var changedPages: UInt64
    /// Bytes of the runs that its pages are in.
    public var storedBytes: UInt64
    /// The part of them that this checkpoint wrote; the rest is an older one's.
    public var writtenBytes: UInt64
    /// True when the parent has the region too: then `cells` says how the map differs from the parent's. Otherwise it is the whole map.
    public var hasBase: Bool
    public var cells: CellChanges
}

/// A map's cells that change, ascending. Lists of equal length; numbers may be negative where they say so.
public struct CellChanges: Codable, Sendable, Equatable {
    public var cells: [Int] = []
    /// Pages whose content changed.
    public var changedPages: [Int] = []
    /// By how much the number of pages that are not zero changed; may be negative.
    public var nonZeroPages: [Int] = []
    /// By how much the bytes of runs changed, each spread evenly over the pages that use it; may be negative.
    public var storedBytes: [Int] = []
    /// By how much the sum of the depths of the writers of all pages that are not zero changed; may be negative. The mean age of a
    /// cell's pages, in checkpoints, is the checkpoint's depth less this sum divided by the number of pages. What a deleted
    /// checkpoint wrote counts as written by the first one listed that has it.
    public var writerDepths: [Int] = []
}

/// A region's address space, cut into cells.
public struct RegionMap: Codable, Sendable {
    public var name: String
    public var kind: RegionKind
    /// The most that it has in any checkpoint.
    public var pageCount: UInt64
    /// A power of two.
    public var pagesPerCell: UInt64
    public var cellCount: Int
}

/// All segments of the store, several to a cell where there are very many. Lists have one member for each cell.
public struct SegmentMap: Codable, Sendable {
    public var segmentsPerCell: Int
    /// 0: all are free, 1: runs, 2: index, 3: catalog; of several the one with the most bytes written.
    public var classes: [Int] = []
    public var committedBytes: [UInt64] = []
    public var liveBytes: [UInt64] = []
    /// The checkpoint that wrote there last, as its place in the list; -1: none that is listed.
    public var writers: [Int] = []
}
