// Gathering a report from a store.
//
// Invariants:
// - Everything is of one snapshot, and nothing is written.
// - Indexes are read, page data is not. What a checkpoint shares with its parent is not read again.

import CheckpointStore
import StoreFormat
import Units

extension ReportData {
    /// Gathers what a report shows.
    ///
    /// Costs two walks through the index: one that counts space, one that compares each checkpoint with its parent.
    /// - Parameters:
    ///   - checkpoints: the most that are shown, the newest ones; at least 1.
    ///   - changedCells: see `ReportLimits`; smaller in tests.
    ///   - madeMilliseconds: now, since 1970-01-01 UTC.
    ///   - progress: called with the number of checkpoints done, and how many there are.
    /// - Throws: `.corrupt` where an index is damaged; what reading throws.
    public init(
        _ store: CheckpointStore, checkpoints: Int = ReportLimits.checkpoints, changedCells: Int = ReportLimits.changedCells,
        madeMilliseconds: UInt64, progress: ((_ done: Int, _ of: Int) -> Void)? = nil
    ) throws(StoreError) {
        precondition(checkpoints >= 1, "a report of no checkpoint")
        let snapshot = try store.snapshot()
        let all = try snapshot.checkpoints()
        let shown = Array(all.suffix(checkpoints))
        let hidden = Set(all.dropLast(shown.count).map(\.id))
        let lineage = Lineage(shown: shown, hidden: hidden, lineage: try snapshot.lineage().mapValues(\.parent))
        let regions = Self.regions(of: shown)
        let info = try store.info(of: snapshot)
        let numbers = Dictionary(uniqueKeysWithValues: shown.enumerated().map { ($0.element.id, $0.offset) })

        self.madeMilliseconds = madeMilliseconds
        self.store = StoreFigures(info, sizeBytes: store.medium.size)
        self.lineage = lineage.nodes
        omittedCheckpoints = hidden.count
        references = try snapshot.references().compactMap { reference in
            numbers[reference.checkpoint].map { MovingName(name: reference.name, checkpoint: $0) }
        }
        omittedRegions = max(0, regions.count - ReportLimits.regions)
        segments = SegmentMap(info, checkpoints: numbers)
        let maps = CellMaps(regions.prefix(ReportLimits.regions).map(RegionMap.init), checkpoints: shown.count, limit: changedCells)
        var gatherer = CheckpointGatherer(snapshot, shown, lineage, maps)
        self.checkpoints = try gatherer.gather(progress)
        self.regions = gatherer.maps.regions
    }

    /// All regions, the largest first, as they are where they are largest.
    private static func regions(of checkpoints: [CheckpointInfo]) -> [RegionInfoSummary] {
        var found: [[UInt8]: RegionInfoSummary] = [:]
        for region in checkpoints.flatMap(\.regions) {
            let key = Array(region.name.utf8)
            if let known = found[key], known.pageCount >= region.pageCount { continue }
            found[key] = RegionInfoSummary(name: region.name, kind: region.kind, pageCount: region.pageCount)
        }
        return found.sorted { a, b in
            if a.value.pageCount != b.value.pageCount { return a.value.pageCount > b.value.pageCount }
            return a.key.lexicographicallyPrecedes(b.key)
        }.map(\.value)
    }
}

/// Goes through the checkpoints along the lineage.
private struct CheckpointGatherer {
    private let snapshot: Snapshot
    private let shown: [CheckpointInfo]
    private let lineage: Lineage
    /// By their names as bytes: names that look the same to Swift need not be the same.
    private let regionNumbers: [[UInt8]: Int]
    private let gatherer: RegionGatherer
    private(set) var maps: CellMaps
    private var depths: [Int]
    private var indexBytes: [Int]

    init(_ snapshot: Snapshot, _ shown: [CheckpointInfo], _ lineage: Lineage, _ maps: CellMaps) {
        self.snapshot = snapshot
        self.shown = shown
        self.lineage = lineage
        self.maps = maps
        gatherer = RegionGatherer(snapshot)
        regionNumbers = Dictionary(uniqueKeysWithValues: maps.regions.enumerated().map { (Array($0.element.name.utf8), $0.offset) })
        depths = Array(repeating: 0, count: shown.count)
        indexBytes = depths
    }

    mutating func gather(_ progress: ((Int, Int) -> Void)?) throws(StoreError) -> [CheckpointFigures] {
        for (done, number) in lineage.depthFirst.enumerated() {
            depths[number] = lineage.parents[number].map { depths[$0] + 1 } ?? 0
            gatherer.begin(shown[number].id, depth: depths[number])
            try addRegions(of: number)
            progress?(done + 1, shown.count)
        }
        return shown.indices.map { number in
            CheckpointFigures(
                shown[number], parent: lineage.parents[number], depth: depths[number], indexBytes: indexBytes[number],
                regions: maps.figures[number])
        }
    }

    private mutating func addRegions(of number: Int) throws(StoreError) {
        let (info, parent) = (shown[number], lineage.parents[number])
        let reader = snapshot.reader(info)
        let parentReader = parent.map { snapshot.reader(shown[$0]) }
        for region in info.regions {
            guard let place = regionNumbers[Array(region.name.utf8)] else { continue }
            let base = parent.flatMap { maps.figures[$0].first { $0.region == place } }
            let difference = try gatherer.compare(
                try reader.region(region.name), since: base == nil ? nil : try parentReader?.region(region.name), of: info.id,
                depth: depths[number], pagesPerCell: maps.regions[place].pagesPerCell)
            indexBytes[number] += difference.indexBytes
            maps.add(
                RegionFigures(
                    region: place, lengthBytes: region.byteLength.rawValue, nonZeroPages: region.storedPages.rawValue,
                    newPages: region.newPages.rawValue, changedPages: UInt64(difference.changedPages),
                    storedBytes: UInt64(Int(base?.storedBytes ?? 0) + difference.storedBytes), writtenBytes: UInt64(difference.writtenBytes),
                    hasBase: base != nil, cells: difference.cells), to: number)
        }
    }
}
