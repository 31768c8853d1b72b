// `ckstore bench`.

import ArgumentParser
import CheckpointStore
import Glibc
import Media
import Units

struct Bench: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Measure this machine, a medium and a store on it.",
        discussion: """
            Makes a scratch store on STORE, measures what the machine and the medium can do at best with the same pages, \
            then saves, restores, reads and verifies them, and shows each result as a share of the limit that binds it. \
            Rounds of limits and results are interleaved; the best round of each counts. The scratch store is removed \
            at the end, and nothing that was there before is touched without --force.

            The input is memory of a guest or process with --image, else real memory of this system: programs, libraries, \
            other files and heap in the proportions that the output tells.

            It needs memory for about five times the size, and five times the size on the medium.

            Example:
              ckstore bench bench.ck
              ckstore bench ram:bench --image guest.mem --json
              ckstore bench raw:/dev/loop0 --size 512M
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        help: ArgumentHelp("How much to save (default 1G; with --image, all of it).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var size: Size?
    @Option(help: ArgumentHelp("Save this file's content: memory of a guest or process.", valueName: "file"), completion: .file())
    var image: String?
    @Option(help: ArgumentHelp("Pages that change before the incremental saves, in percent.", valueName: "percent"))
    var dirty = 1.0
    @Option(help: ArgumentHelp("How often everything is measured.", valueName: "n"))
    var rounds = 5
    @Flag(help: "Replace what is on the medium.")
    var force = false
    @Flag(help: "Leave the last round's store there.")
    var keep = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    private static let smallest = ByteCount.mebibytes(16)
    private static let largest = ByteCount.gibibytes(64)

    func validate() throws {
        if !(dirty > 0 && dirty <= 100) { throw ValidationError("--dirty is \(dirty); it can be more than 0, up to 100.") }
        if !(1...1000).contains(rounds) { throw ValidationError("--rounds is \(rounds); it can be 1 to 1000.") }
        if let size, !(Self.smallest...Self.largest).contains(size.bytes) {
            throw ValidationError("--size is \(size.bytes) bytes; it can be 16M to 64G.")
        }
    }

    func run() throws {
        Interruption.begin()
        let say = sayer()
        defer { if output.showsProgress { standardError("\r\u{1B}[K") } }
        let image = try self.image.map { try BenchImage.load($0, limit: size?.bytes) }
            ?? BenchImage.build(size: size?.bytes ?? .gibibytes(1), say: say)
        let scratch = try BenchScratch(target.store, size: mediumSize(image), force: force)
        let report: BenchReport
        do {
            report = try measure(image, scratch, say)
        } catch {
            // The first error is the one to tell.
            if !keep { try? scratch.remove() }
            throw error
        }
        if keep { scratch.keepStore() } else { try scratch.remove() }
        if output.showsProgress { standardError("\r\u{1B}[K") }
        try self.output.report(report, summary: report.text)
    }

    /// Four full saves that may not compress at all, and room for the rest.
    private func mediumSize(_ image: BenchImage) -> ByteCount {
        ByteCount(image.memory.count * 9 / 2).roundedUp(to: 2 << 20) + .mebibytes(256)
    }

    private func measure(_ image: BenchImage, _ scratch: BenchScratch, _ say: @escaping (String) -> Void) throws -> BenchReport {
        say("packing the image")
        let units = try BenchUnits(image)
        let file = try image.memoryFile()
        defer { close(file) }
        var run = BenchRun(
            scratch: scratch, image: image, units: units, target: try BenchMemory(count: image.memory.count, isTouched: true),
            file: file, dirtying: try BenchDirtying(image, percent: dirty, among: units.units.flatMap(\.pages)), threads: jobs.value,
            say: say)
        for number in 0..<rounds { try run.round(number, of: rounds) }
        try run.opens()
        try run.countEmptyCommit()
        let store = try scratch.open()
        defer { store.close() }
        var report = BenchReport(
            medium: store.medium.name, mediumKind: store.medium.traits.kind.rawValue, writeMethod: store.medium.traits.writeMethod,
            threads: jobs.value, rounds: rounds, dirtyPercent: dirty,
            image: .init(
                source: image.source, lengthBytes: image.memory.count, nonZeroBytes: units.nonZeroPages * pageSize,
                compressionRatio: Double(units.nonZeroPages * pageSize) / Double(max(units.packedBytes, 1))), machine: .init())
        try BenchReporter(samples: run.samples, units: units, imageBytes: image.memory.count).fill(&report)
        return report
    }

    /// Shows what is going on, to those who watch.
    private func sayer() -> (String) -> Void {
        guard output.showsProgress else { return { _ in } }
        return { text in standardError("\r\(text)\u{1B}[K") }
    }
}
