// `ckstore diff`.

import ArgumentParser
import CheckpointStore
import StoreFormat
import Units

struct Diff: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show which pages differ between two checkpoints.",
        discussion: """
            For each memory block, disk and other region: pages of 4 KiB whose content differs, and pages that are zero (or not \
            there) in one of the two checkpoints only. What both share in the store is not read, and no page is: their \
            hashes are compared. The checkpoints need not be related.

            Example:
              ckstore diff vm.ck monday tuesday
              ckstore diff vm.ck monday tuesday --region memory:pc.ram --pages
              ckstore diff vm.ck monday tuesday --pages --json
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of one checkpoint, A.")
    var a: String
    @Argument(help: "The name of the other one, B.")
    var b: String
    @Option(help: ArgumentHelp("Compare only this region; may be repeated.", valueName: "region"))
    var region: [String] = []
    @Flag(help: "List the pages too, as ranges.")
    var pages = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let snapshot = try store.snapshot()
        let (readerA, readerB) = (try snapshot.reader(named: a), try snapshot.reader(named: b))
        let names = try regionNames(readerA, readerB)
        let lengths = names.map { max(readerA.byteLength(of: $0) ?? .zero, readerB.byteLength(of: $0) ?? .zero) }
        let progress = Progress(isShown: output.showsProgress, total: lengths.reduce(.zero, +))
        var regions: [RegionDifference] = []
        do {
            defer { progress.clear() }
            for name in names {
                progress.begin(name)
                regions.append(try compare(name, readerA, readerB, progress))
            }
        }
        let result = Result(a: Side(readerA), b: Side(readerB), regions: regions)
        if output.json { return try StandardOutput.write(json: result) }
        try StandardOutput.write(text(regions))
    }

    /// The regions to compare, in the order of the newer checkpoint, those that only the older one has behind them.
    private func regionNames(_ a: CheckpointReader, _ b: CheckpointReader) throws -> [String] {
        let namesB = b.info.regions.map(\.name)
        let all = namesB + a.info.regions.map(\.name).filter { !namesB.contains($0) }
        if let missing = region.first(where: { !all.contains($0) }) {
            throw StoreError(
                .notFound, "neither checkpoint has such a region", remedy: "They have: \(all.joined(separator: ", ")).",
                checkpoint: self.b, region: missing)
        }
        return region.isEmpty ? all : all.filter(region.contains)
    }

    private func compare(
        _ name: String, _ a: CheckpointReader, _ b: CheckpointReader, _ progress: Progress
    ) throws -> RegionDifference {
        let infos = [a, b].map { reader in reader.info.regions.first { $0.name == name } }
        var result = RegionDifference(name: name, a: infos[0], b: infos[1], listsPages: pages)
        guard infos[0] != nil, infos[1] != nil else {
            // All that there is, is on one side only.
            let (reader, kind) = infos[0] == nil ? (b, PageDifference.onlyInNewer) : (a, .onlyInOlder)
            for range in try reader.region(name).dataRanges() { result.add(range, kind) }
            return result
        }
        try b.region(name).forEachDifference(
            since: a.region(name), progress: { progress.update(PageCount($0.rawValue).bytes) }
        ) { (range, kind) throws(StoreError) in result.add(range, kind) }
        return result
    }

    private func text(_ regions: [RegionDifference]) -> String {
        var table = Table(columns: [
            ("REGION", .left), ("KIND", .left), ("PAGES", .right), ("CHANGED", .right), ("ONLY A", .right), ("ONLY B", .right),
            ("DIFFERENT", .right),
        ])
        table.rows = regions.map { region in
            [
                printable(region.name) + (region.note.map { " (\($0))" } ?? ""), region.kind, "\(region.totalPages)",
                "\(region.changedPages)", "\(region.onlyInAPages)", "\(region.onlyInBPages)",
                readable(PageCount(region.changedPages + region.onlyInAPages + region.onlyInBPages).bytes),
            ]
        }
        var text = "A: \(printable(a))\nB: \(printable(b))\n\n" + table.text
        guard pages else { return text }
        for region in regions where region.ranges?.isEmpty == false {
            text += "\n\(printable(region.name)):\n"
            for range in region.ranges ?? [] {
                let last = range.first + range.count - 1
                text += "  \(range.first == last ? "\(last)" : "\(range.first)-\(last)") \(range.difference)\n"
            }
        }
        return text
    }
}

extension CheckpointReader {
    fileprivate func byteLength(of region: String) -> ByteCount? { info.regions.first { $0.name == region }?.byteLength }
}

/// One of the two checkpoints, as JSON.
private struct Side: Encodable {
    var name: String
    var id: String

    init(_ reader: CheckpointReader) {
        name = reader.info.name
        id = reader.info.id.description
    }
}

private struct Result: Encodable {
    var a: Side
    var b: Side
    var regions: [RegionDifference]
}

/// What differs in one region, as JSON.
private struct RegionDifference: Encodable {
    struct PageRange: Encodable {
        var first: UInt64
        var count: UInt64
        /// "changed", "onlyInA", "onlyInB".
        var difference: String
    }

    var name: String
    var kind: String
    /// Absent where the checkpoint has no such region.
    var lengthBytesA: UInt64?
    var lengthBytesB: UInt64?
    /// Pages of the longer one.
    var totalPages: UInt64
    var changedPages: UInt64 = 0
    var onlyInAPages: UInt64 = 0
    var onlyInBPages: UInt64 = 0
    /// With --pages only.
    var ranges: [PageRange]?

    init(name: String, a: RegionInfo?, b: RegionInfo?, listsPages: Bool) {
        self.name = name
        kind = (b ?? a)?.kind.name ?? ""
        lengthBytesA = a?.byteLength.rawValue
        lengthBytesB = b?.byteLength.rawValue
        totalPages = max(a?.pageCount ?? .zero, b?.pageCount ?? .zero).rawValue
        ranges = listsPages ? [] : nil
    }

    mutating func add(_ pages: Range<PageIndex>, _ difference: PageDifference) {
        let count = (pages.upperBound - pages.lowerBound).rawValue
        let text: String
        switch difference {
        case .changed: (text, changedPages) = ("changed", changedPages + count)
        case .onlyInOlder: (text, onlyInAPages) = ("onlyInA", onlyInAPages + count)
        case .onlyInNewer: (text, onlyInBPages) = ("onlyInB", onlyInBPages + count)
        }
        guard let last = ranges?.indices.last else {
            ranges?.append(PageRange(first: pages.lowerBound.rawValue, count: count, difference: text))
            return
        }
        if let before = ranges?[last], before.difference == text, before.first + before.count == pages.lowerBound.rawValue {
            ranges?[last].count += count
        } else {
            ranges?.append(PageRange(first: pages.lowerBound.rawValue, count: count, difference: text))
        }
    }

    /// What the numbers of pages don't say.
    var note: String? {
        switch (lengthBytesA, lengthBytesB) {
        case (nil, _): "not in A"
        case (_, nil): "not in B"
        case (let a?, let b?): a == b ? nil : "\(a) bytes in A, \(b) in B"
        }
    }
}
