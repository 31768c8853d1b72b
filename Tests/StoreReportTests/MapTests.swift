// Maps, held against what the pages are known to hold.

import CheckpointStore
import FaultHarness
import StoreReport
import StoreTesting
import Testing
import Units

/// Throws unless the report says of every region what the model does.
private func requireEqual(_ reading: ReportReading, _ scene: ReportScene) throws {
    guard Set(reading.data.checkpoints.map(\.name)) == Set(scene.model.keys) else { throw Mismatch("other checkpoints") }
    for (name, regions) in scene.model {
        guard let figures = reading.checkpoint(name) else { throw Mismatch("\(name) is missing") }
        var ancestor = scene.parents[name]
        // Where the parent was deleted, its nearest ancestor that is there counts.
        while let parent = ancestor, scene.model[parent] == nil { ancestor = scene.parents[parent] }
        guard figures.parent.map({ reading.data.checkpoints[$0].name }) == ancestor else { throw Mismatch("\(name) has another parent") }
        for (regionName, region) in regions {
            try requireEqual(reading, figures, regionName, region, base: ancestor.flatMap { scene.model[$0]?[regionName] })
        }
    }
}

private func requireEqual(
    _ reading: ReportReading, _ checkpoint: CheckpointFigures, _ name: String, _ region: ModelRegion, base: ModelRegion?
) throws {
    let place = "\(checkpoint.name)/\(name)"
    guard let figures = reading.figures(checkpoint, name) else { throw Mismatch("\(place) is missing") }
    let layout = reading.data.regions[figures.region]
    var expected = Array(repeating: (nonZero: 0, changed: 0, depths: 0, areKnown: true), count: layout.cellCount)
    for page in 0..<max(region.contents.count, base?.contents.count ?? 0) {
        let cell = page / Int(layout.pagesPerCell)
        let (content, old) = (region.content(page), base?.content(page) ?? 0)
        if content != old { expected[cell].changed += 1 }
        guard content != 0 else { continue }
        expected[cell].nonZero += 1
        let writer = reading.checkpoint(region.writers[page])
        expected[cell].depths += writer?.depth ?? 0
        if writer == nil { expected[cell].areKnown = false }
    }
    var changed = Array(repeating: 0, count: layout.cellCount)
    for (index, cell) in figures.cells.cells.enumerated() { changed[cell] = figures.cells.changedPages[index] }
    let cells = reading.cells(checkpoint, name)
    for index in 0..<layout.cellCount {
        let (found, wanted) = (cells[index], expected[index])
        guard found.nonZeroPages == wanted.nonZero, changed[index] == wanted.changed, (found.storedBytes > 0) == (wanted.nonZero > 0),
            wanted.areKnown ? found.writerDepths == wanted.depths : found.writerDepths >= 0
        else { throw Mismatch("\(place) cell \(index): \(found), \(changed[index]) changed; expected \(wanted)") }
    }
    guard figures.changedPages == UInt64(expected.reduce(0) { $0 + $1.changed }),
        figures.storedBytes == UInt64(cells.reduce(0) { $0 + $1.storedBytes }), figures.writtenBytes <= figures.storedBytes
    else { throw Mismatch("\(place): \(figures)") }
}

@Test func `maps say of every cell what its pages are, changed or not, and who wrote them`() async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    try await onPlainThread {
        var scene = try ReportScene(seed: seed)
        defer { scene.store.close() }
        for step in 0..<30 {
            try scene.step()
            guard step % 6 == 5 else { continue }
            let data = try ReportData(scene.store, madeMilliseconds: 0)
            do { try requireEqual(ReportReading(data), scene) } catch { throw Mismatch("seed \(seed), step \(step): \(error)") }
            #expect(data.checkpoints.allSatisfy { one in one.regions.reduce(0) { $0 + $1.writtenBytes } == one.storedBytes }, "seed \(seed)")
        }
    }
}

@Test func `a map that is wrong in one number is found out`() async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    try await onPlainThread {
        var scene = try ReportScene(seed: seed)
        defer { scene.store.close() }
        for _ in 0..<8 { try scene.step() }
        let sound = try ReportData(scene.store, madeMilliseconds: 0)
        try requireEqual(ReportReading(sound), scene)
        let fields = [\CellChanges.changedPages, \.nonZeroPages, \.storedBytes, \.writerDepths]
        for (checkpoint, figures) in sound.checkpoints.enumerated() {
            for (region, of) in figures.regions.enumerated() where !of.cells.cells.isEmpty {
                for field in fields {
                    var data = sound
                    data.checkpoints[checkpoint].regions[region].cells[keyPath: field][0] += 1
                    // Ages are not known where the writer has been deleted.
                    if field == \.writerDepths, scene.hasDeleted { continue }
                    #expect(throws: Mismatch.self, "seed \(seed): \(figures.name), region \(region), \(field)") {
                        try requireEqual(ReportReading(data), scene)
                    }
                }
            }
        }
    }
}

@Test func `maps that would be too large become coarser, and stay right`() async throws {
    let seed = UInt64.random(in: 0...UInt64.max)
    try await onPlainThread {
        var scene = try ReportScene(seed: seed)
        defer { scene.store.close() }
        for _ in 0..<20 { try scene.step() }
        let fine = try ReportData(scene.store, madeMilliseconds: 0)
        let total = fine.checkpoints.flatMap(\.regions).reduce(0) { $0 + $1.cells.cells.count }
        for limit in [total, total / 3, 100, 1] {
            let data = try ReportData(scene.store, changedCells: limit, madeMilliseconds: 0)
            do { try requireEqual(ReportReading(data), scene) } catch { throw Mismatch("seed \(seed), limit \(limit): \(error)") }
            let count = data.checkpoints.flatMap(\.regions).reduce(0) { $0 + $1.cells.cells.count }
            #expect(count <= limit || data.regions.allSatisfy { $0.cellCount == 1 }, "seed \(seed): \(count) cells, limit \(limit)")
            #expect(data.regions.allSatisfy { UInt64($0.cellCount) == ($0.pageCount - 1) / $0.pagesPerCell + 1 }, "seed \(seed)")
        }
    }
}

@Test func `checkpoints that are not shown leave whole maps, and what was deleted leaves a place`() async throws {
    try await onPlainThread {
        let scratch = try ScratchStore()
        func save(_ name: String, parent: String?) throws -> CheckpointID {
            let writer = try scratch.store.begin(name, parent: parent)
            let region = try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(64))
            try region.put(page: PageIndex(UInt64(name.utf8.reduce(0) { $0 + Int($1) } % 16)), [UInt8](repeating: 7, count: pageSize))
            return try writer.commit().id
        }
        _ = try save("a", parent: nil)
        let b = try save("b", parent: "a")
        let c = try save("c", parent: "b")
        _ = try save("d", parent: "b")
        let newest = try ReportData(scratch.store, checkpoints: 3, madeMilliseconds: 0)
        #expect(newest.checkpoints.map(\.name) == ["b", "c", "d"] && newest.omittedCheckpoints == 1)
        #expect(newest.lineage.map(\.isCut) == [true, false, false])
        #expect(newest.checkpoints[0].regions[0].hasBase == false && newest.checkpoints[1].regions[0].hasBase)

        try scratch.store.delete(["b"])
        let data = try ReportData(scratch.store, madeMilliseconds: 0)
        #expect(data.checkpoints.map(\.parent) == [nil, 0, 0])
        // The deleted one joins its children to its parent.
        let gap = try #require(data.lineage.firstIndex { $0.id == b })
        #expect(data.lineage[gap].checkpoint == nil && data.lineage[gap].parent == 0)
        #expect(data.lineage.filter { $0.parent == gap }.count == 2)

        // Where it is known, changes are counted from the nearest ancestor that is there.
        let snapshot = try scratch.store.snapshot()
        let shown = try snapshot.checkpoints()
        let lineage = Lineage(shown: shown, hidden: [], lineage: [b: shown[0].id])
        #expect(lineage.parents == [nil, 0, 0])
        #expect(lineage.nodes.map(\.parent) == [nil, 0, 1, 1])
        #expect(lineage.nodes.map(\.checkpoint) == [0, nil, 1, 2])
        #expect(lineage.nodes[2].id == c)
    }
}
