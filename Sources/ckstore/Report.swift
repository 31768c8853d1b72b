// `ckstore report`.
//
// Invariant: a file has its final name only when it is complete.

import ArgumentParser
import CheckpointStore
import Glibc
import StoreReport
import Units

struct Report: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Draw a store as one HTML page: lineage, changes, space.",
        discussion: """
            The page shows how full the store is, the lineage of its checkpoints, what changed where in each region and how old pages \
            are, what checkpoints cost, and how segments are used. It is one file that needs no network; any browser shows it.

            Only the index is read. The newest \(ReportLimits.checkpoints) checkpoints are shown if not told otherwise. Maps have at most \
            \(ReportLimits.cellsPerRegion) cells for each region, fewer where very much changes.

            #checkpoint=NAME, &compare=NAME, &region=NAME and &colour=changed, age, ratio or full behind the page's address choose what \
            it shows first.

            Example:
              ckstore report vm.ck -o vm.html
              ckstore report vm.ck -o vm.html --checkpoints 100 --json vm.json --force
              ckstore report vm.ck --json - | jq '.checkpoints[].storedBytes'
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        name: [.customShort("o"), .customLong("output")],
        help: ArgumentHelp("The page to write; '-' is standard output.", valueName: "file"), completion: .file())
    var page: String?
    @Option(help: ArgumentHelp("Write what the page shows as JSON too; '-' is standard output.", valueName: "file"), completion: .file())
    var json: String?
    @Option(help: ArgumentHelp("Show only so many checkpoints, the newest ones.", valueName: "n"))
    var checkpoints = ReportLimits.checkpoints
    @Flag(help: "Replace files that exist.")
    var force = false
    @Flag(name: .shortAndLong, help: "Print no progress and no summary.")
    var quiet = false
    @OptionGroup var generation: GenerationOption

    func validate() throws {
        guard page != nil || json != nil else { throw ValidationError("Name the page to write: -o FILE, or --json FILE for its data alone.") }
        for path in [page, json] {
            if let path, path.isEmpty || path.utf8.contains(0) { throw ValidationError("-o and --json need a file.") }
        }
        guard page != json else { throw ValidationError("-o and --json need different files.") }
        guard (1...1_000_000).contains(checkpoints) else {
            throw ValidationError("--checkpoints is \(checkpoints); it can be 1 to 1000000.")
        }
    }

    func run() throws {
        Interruption.begin()
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        for path in [page, json] {
            guard let path, path != "-", target.store.kind != .ram, FileIdentity(path) == FileIdentity(target.store.target) else { continue }
            throw StoreError(.invalidInput, "\(path) is the store", remedy: "Choose another file.")
        }
        let outputs = try [page, json].map { path in
            try path.map { try RestoreTargets.make(RegionFile(region: "", path: $0), length: .zero, force: force) }
        }
        let data = try gather(store)
        if let output = outputs[0] { try write(try ReportPage.html(data), to: output, path: page ?? "") }
        if let output = outputs[1] { try write(try ReportPage.json(data) + "\n", to: output, path: json ?? "") }
        for output in outputs { try output?.publish() }
        guard !quiet, page != "-", json != "-" else { return }
        let written = [page, json].compactMap { $0.map(printable) }.joined(separator: " and ")
        try StandardOutput.write("\(counted(data.checkpoints.count, "checkpoint")) drawn in \(written)\n")
    }

    private func gather(_ store: CheckpointStore) throws -> ReportData {
        let shows = !quiet && isTerminal(2)
        defer { if shows { standardError("\r\u{1B}[K") } }
        return try ReportData(
            store, checkpoints: checkpoints, madeMilliseconds: wallClockNanoseconds() / 1_000_000,
            progress: { done, total in
                if shows, done % 16 == 0 { standardError("\r\(done) of \(total) checkpoints compared\u{1B}[K") }
            })
    }

    private func write(_ text: String, to output: any RestoreTarget, path: String) throws {
        var text = text
        let write: (Int32) throws -> Void = { descriptor in
            let status = text.withUTF8 { bytes in unsafe writeAll(descriptor, UnsafeRawBufferPointer(bytes)) }
            if status == EPIPE { throw BrokenPipe() }
            if status != 0 { throw systemError("write to", path == "-" ? "standard output" : path, status) }
        }
        switch output {
        case let file as FileTarget: try file.fill(write)
        case let stream as StreamTarget: try stream.fill(write)
        default: throw StoreError(.invalidInput, "\(path) is a device", remedy: "Name a file.")
        }
    }
}
