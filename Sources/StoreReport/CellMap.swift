// Maps of regions while they are gathered: cells that change from checkpoint to checkpoint, made coarser when they are too many.
//
// Invariant: a cell is a sum over its pages; joining two neighbours is adding them.

import Units

extension CellChanges {
    /// How one cell changes.
    struct Cell: Equatable {
        var changedPages = 0
        var nonZeroPages = 0
        var storedBytes = 0
        var writerDepths = 0
        var isEmpty: Bool { self == Cell() }
    }

    /// Adds to cell `number`, the last one or one behind it.
    mutating func add(_ cell: Cell, at number: Int) {
        guard !cell.isEmpty else { return }
        if cells.last != number {
            precondition((cells.last ?? -1) < number, "cells come in ascending order")
            cells.append(number)
            changedPages.append(0)
            nonZeroPages.append(0)
            storedBytes.append(0)
            writerDepths.append(0)
        }
        let last = cells.count - 1
        changedPages[last] += cell.changedPages
        nonZeroPages[last] += cell.nonZeroPages
        storedBytes[last] += cell.storedBytes
        writerDepths[last] += cell.writerDepths
    }

    /// The same with two cells in one.
    func halved() -> CellChanges {
        var result = CellChanges()
        for index in cells.indices {
            let cell = Cell(
                changedPages: changedPages[index], nonZeroPages: nonZeroPages[index], storedBytes: storedBytes[index],
                writerDepths: writerDepths[index])
            result.add(cell, at: cells[index] / 2)
        }
        return result
    }
}

extension RegionMap {
    /// A map with as many cells as a region may have.
    init(_ region: RegionInfoSummary) {
        var pagesPerCell: UInt64 = 1
        let pages = max(region.pageCount.rawValue, 1)
        while (pages - 1) / pagesPerCell >= UInt64(ReportLimits.cellsPerRegion) { pagesPerCell *= 2 }
        self.init(
            name: region.name, kind: region.kind, pageCount: region.pageCount.rawValue, pagesPerCell: pagesPerCell,
            cellCount: Int((pages - 1) / pagesPerCell) + 1)
    }

    mutating func halve() {
        pagesPerCell *= 2
        cellCount = (cellCount + 1) / 2
    }
}

/// The maps of all regions of a report.
struct CellMaps {
    private(set) var regions: [RegionMap]
    /// By checkpoint, then in the order in which the regions were added.
    private(set) var figures: [[RegionFigures]]
    private var count = 0
    private let limit: Int

    init(_ regions: [RegionMap], checkpoints: Int, limit: Int) {
        self.regions = regions
        figures = Array(repeating: [], count: checkpoints)
        self.limit = limit
    }

    /// Takes a region of a checkpoint, whose cells are as wide as `regions` says at this time.
    mutating func add(_ region: RegionFigures, to checkpoint: Int) {
        figures[checkpoint].append(region)
        count += region.cells.cells.count
        while count > limit, halveLargest() {}
    }

    /// Makes the maps with the most cells coarser. False when each has one cell only.
    private mutating func halveLargest() -> Bool {
        guard let most = regions.map(\.cellCount).max(), most > 1 else { return false }
        let halved = regions.indices.filter { regions[$0].cellCount == most }
        for region in halved { regions[region].halve() }
        count = 0
        for checkpoint in figures.indices {
            for index in figures[checkpoint].indices {
                if halved.contains(figures[checkpoint][index].region) {
                    figures[checkpoint][index].cells = figures[checkpoint][index].cells.halved()
                }
                count += figures[checkpoint][index].cells.cells.count
            }
        }
        return true
    }
}
