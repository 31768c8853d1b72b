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
            hashes are compared. The checkpoints need not be related. NODES is how many index nodes had to be read. For disks, \
            --pages lists blocks of 4 KiB as ranges of bytes.

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
        let changes = ChangeSet(from: readerA, to: readerB)
        let compared = try self.compared(changes)
        let lengths = compared.map { max($0.older?.byteLength ?? .zero, $0.newer?.byteLength ?? .zero) }
        let progress = Progress(isShown: output.showsProgress, total: lengths.saturatingSum)
        var regions: [RegionDifference] = []
        do {
            defer { progress.clear() }
            for change in compared {
                progress.begin(change.name)
                regions.append(try compare(change, changes, progress))
            }
        }
        let result = Result(a: Side(readerA), b: Side(readerB), regions: regions)
        if output.json { return try StandardOutput.write(json: result) }
        try StandardOutput.write(text(regions))
    }

    /// The regions to compare, in the order of the newer checkpoint, those that only the older one has behind them.
    private func compared(_ changes: ChangeSet) throws(StoreError) -> [RegionChange] {
        let all = changes.regions.filter { $0.newer != nil } + changes.regions.filter { $0.newer == nil }
        if let missing = region.first(where: { name in !all.contains { $0.name == name } }) {
            throw StoreError(
                .notFound, "neither checkpoint has such a region", remedy: "They have: \(all.map(\.name).joined(separator: ", ")).",
                checkpoint: b, region: missing)
        }
        return region.isEmpty ? all : all.filter { region.contains($0.name) }
    }

    private func compare(_ change: RegionChange, _ changes: ChangeSet, _ progress: Progress) throws(StoreError) -> RegionDifference {
        var result = RegionDifference(change, listsPages: pages)
        let counts = try changes.forEachDifference(of: change, progress: { progress.update(PageCount($0.rawValue).bytes) }) {
            (range, kind) throws(StoreError) in result.add(range, kind)
        }
        result.nodesRead = counts.nodes
        return result
    }

    private func text(_ regions: [RegionDifference]) -> String {
        var table = Table(columns: [
            ("REGION", .left), ("KIND", .left), ("PAGES", .right), ("CHANGED", .right), ("ONLY A", .right), ("ONLY B", .right),
            ("DIFFERENT", .right), ("NODES", .right),
        ])
        table.rows = regions.map { region in
            [
                printable(region.name) + (region.note.map { " (\($0))" } ?? ""), region.kind, "\(region.totalPages)",
                "\(region.changedPages)", "\(region.onlyInAPages)", "\(region.onlyInBPages)",
                readable(PageCount(region.changedPages + region.onlyInAPages + region.onlyInBPages).bytes), "\(region.nodesRead)",
            ]
        }
        var text = "A: \(printable(a))\nB: \(printable(b))\n\n" + table.text
        guard pages else { return text }
        for region in regions where region.ranges?.isEmpty == false {
            text += "\n\(printable(region.name)):\n"
            for range in region.ranges ?? [] {
                let last = range.first + range.count - 1
                let isDisk = region.kind == RegionKind.disk.name
                let place =
                    isDisk ? "\(range.offsetBytes)+\(range.lengthBytes)" : range.first == last ? "\(last)" : "\(range.first)-\(last)"
                text += "  \(place) \(range.difference)\n"
            }
        }
        return text
    }
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
        /// The same in bytes, to the end of the longer one.
        var offsetBytes: UInt64
        var lengthBytes: UInt64
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
    /// Index nodes that were read.
    var nodesRead = 0
    /// With --pages only.
    var ranges: [PageRange]?

    init(_ change: RegionChange, listsPages: Bool) {
        let (a, b) = (change.older, change.newer)
        name = change.name
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
        guard var list = ranges else { return }
        var range = PageRange(first: pages.lowerBound.rawValue, count: count, difference: text, offsetBytes: 0, lengthBytes: 0)
        if let last = list.last, last.difference == text, last.first + last.count == range.first {
            list.removeLast()
            (range.first, range.count) = (last.first, last.count + count)
        }
        range.offsetBytes = PageCount(range.first).bytes.rawValue
        range.lengthBytes = min(PageCount(range.count).bytes.rawValue, max(lengthBytesA ?? 0, lengthBytesB ?? 0) - range.offsetBytes)
        ranges = nil
        list.append(range)
        ranges = list
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
