// Stores whose content is known page by page, and what a report must say of them.

import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreReport
import StoreTesting
import Units

/// A region in the model: what each page holds (0: zero), and which checkpoint wrote that.
struct ModelRegion {
    var contents: [UInt64] = []
    var writers: [String] = []

    /// Zero behind the end.
    func content(_ page: Int) -> UInt64 { page < contents.count ? contents[page] : 0 }
}

/// Random saves on branches, and deletions, with the model of what is there.
struct ReportScene {
    let store: CheckpointStore
    private(set) var random: SeededGenerator
    private(set) var model: [String: [String: ModelRegion]] = [:]
    private(set) var parents: [String: String] = [:]
    private var serial = 0
    /// Whether any checkpoint was deleted.
    var hasDeleted: Bool { serial != model.count }

    init(seed: UInt64) throws {
        store = try CheckpointStore.create(
            on: FaultMedium(SimulatedDevice(size: ByteCount.mebibytes(64))), options: CreateOptions(segmentSize: .kibibytes(256)),
            environment: testEnvironment(seed: seed))
        random = SeededGenerator(seed: seed)
    }

    /// Saves over a random parent, or deletes.
    mutating func step() throws {
        let names = model.keys.sorted()
        if names.count > 3, random.chance(1, in: 6) { return try delete(names[random.below(names.count)]) }
        let parent = names.isEmpty || random.chance(1, in: 10) ? nil : names[random.below(names.count)]
        serial += 1
        let name = "c\(serial)"
        // Who wrote a page is who changed it last.
        var options = WriterOptions()
        options.repacking = NoRepacking()
        let writer = try store.begin(name, parent: parent, options: options)
        var regions: [String: ModelRegion] = [:]
        for region in ["ram", "disk"] where region == "ram" || random.chance(2, in: 3) {
            regions[region] = try save(region, parent.flatMap { model[$0]?[region] }, name, writer)
        }
        try writer.commit()
        model[name] = regions
        parents[name] = parent
    }

    /// Deletes one; its children keep its name as that of their parent.
    mutating func delete(_ name: String) throws {
        try store.delete([name])
        model[name] = nil
    }

    private mutating func save(_ name: String, _ old: ModelRegion?, _ checkpoint: String, _ writer: CheckpointWriter) throws -> ModelRegion {
        var region = old ?? ModelRegion()
        let count = old == nil || random.chance(1, in: 5) ? 1 + random.below(1500) : region.contents.count
        region.contents = Array(region.contents.prefix(count)) + Array(repeating: 0, count: max(0, count - region.contents.count))
        region.writers = Array(region.writers.prefix(count)) + Array(repeating: "", count: max(0, count - region.writers.count))
        let start = random.below(count)
        for page in start..<min(count, start + random.below(60)) { put(page, checkpoint, &region) }
        for _ in 0..<random.below(40) { put(random.below(count), checkpoint, &region) }
        let handle = try writer.addRegion(name, kind: name == "ram" ? .memory : .disk, byteLength: ByteCount(count * pageSize))
        try handle.write(region.contents.flatMap { Self.bytes($0) })
        return region
    }

    private mutating func put(_ page: Int, _ checkpoint: String, _ region: inout ModelRegion) {
        region.contents[page] = random.chance(1, in: 4) ? 0 : 1 + random.next() % 1_000_000
        region.writers[page] = checkpoint
    }

    private static func bytes(_ content: UInt64) -> [UInt8] {
        content == 0 ? [UInt8](repeating: 0, count: pageSize) : (0..<pageSize / 8).flatMap { _ in content.littleEndianBytes }
    }
}

/// A report's data, put together as the page does it.
struct ReportReading {
    let data: ReportData
    private let numbers: [String: Int]

    init(_ data: ReportData) {
        self.data = data
        numbers = Dictionary(uniqueKeysWithValues: data.checkpoints.enumerated().map { ($0.element.name, $0.offset) })
    }

    func checkpoint(_ name: String) -> CheckpointFigures? { numbers[name].map { data.checkpoints[$0] } }

    func figures(_ checkpoint: CheckpointFigures, _ region: String) -> RegionFigures? {
        checkpoint.regions.first { data.regions[$0.region].name == region }
    }

    /// What each cell of a region has.
    func cells(_ checkpoint: CheckpointFigures, _ region: String) -> [(nonZeroPages: Int, storedBytes: Int, writerDepths: Int)] {
        guard let own = figures(checkpoint, region) else { return [] }
        var cells = own.hasBase ? self.cells(data.checkpoints[checkpoint.parent ?? -1], region) : Array(
            repeating: (nonZeroPages: 0, storedBytes: 0, writerDepths: 0), count: data.regions[own.region].cellCount)
        for (index, cell) in own.cells.cells.enumerated() {
            cells[cell].nonZeroPages += own.cells.nonZeroPages[index]
            cells[cell].storedBytes += own.cells.storedBytes[index]
            cells[cell].writerDepths += own.cells.writerDepths[index]
        }
        return cells
    }
}
