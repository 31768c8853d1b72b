// `ckstore bench-rollback`.

import ArgumentParser
import CheckpointCore
import Glibc
import Media
import Rollback
import Units

struct RollbackBenchCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-rollback",
        abstract: "Measure the six strategies for memory that is rolled back to its last checkpoint.",
        discussion: """
            Writes some pages, takes a checkpoint, writes others, rolls back, and checks what came back: for each strategy what a first write, a \
            checkpoint and a rollback cost, and the memory that it takes. With --image each checkpoint is kept on that medium as well, so that it \
            outlives the process; the file is made for it and removed.

            Needs the right to watch memory: see `ckstore bench-live --help`.

            Example:
              ckstore bench-rollback
              ckstore bench-rollback --size 1G --image file:/var/tmp/rollback.img --json
            """)

    @Option(help: ArgumentHelp("How much memory.", valueName: "size"), transform: { try Size(parsing: $0) })
    var size = try! Size(parsing: "256M")
    @Option(help: ArgumentHelp("Pages written between two checkpoints, in thousandths.", valueName: "n"))
    var writtenPerMille = 10
    @Option(help: ArgumentHelp("How often everything is measured; figures are medians.", valueName: "n"))
    var rounds = 9
    @Option(help: ArgumentHelp("Keep checkpoints on this medium as well; it must not exist.", valueName: "locator"), transform: { try Locator($0) })
    var image: Locator?
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if !(ByteCount.mebibytes(1)...ByteCount.gibibytes(64)).contains(size.bytes) || size.bytes.rawValue % UInt64(pageSize) != 0 {
            throw ValidationError("--size is \(size.bytes) bytes; it can be 1M to 64G, a multiple of 4K.")
        }
        if !(1...1000).contains(writtenPerMille) { throw ValidationError("--written-per-mille is \(writtenPerMille); it can be 1 to 1000.") }
        if !(1...1000).contains(rounds) { throw ValidationError("--rounds is \(rounds); it can be 1 to 1000.") }
        if image?.kind == .raw { throw ValidationError("--image is a device; give it a file or shared memory, which the bench makes and removes.") }
    }

    /// What is printed.
    private struct Report: Encodable {
        var machine = BenchReport.Machine()
        var memoryBytes: UInt64
        var image: String?
        var rounds: Int
        var rows: [RollbackBench.Row] = []
    }

    func run() throws {
        Interruption.begin()
        var report = Report(memoryBytes: size.bytes.rawValue, image: image?.description, rounds: rounds)
        for kind in RollbackStrategyKind.allCases {
            if output.showsProgress { standardError("\r\(kind.rawValue)\u{1B}[K") }
            report.rows.append(try measure(kind))
        }
        if output.showsProgress { standardError("\r\u{1B}[K") }
        try output.report(report, summary: text(report))
    }

    private func measure(_ kind: RollbackStrategyKind) throws -> RollbackBench.Row {
        var bench = RollbackBench()
        bench.byteLength = size.bytes
        bench.writtenPerMille = writtenPerMille
        bench.rounds = rounds
        guard let image, kind != .postImageRemote else { return try bench.run(kind) }
        let length = try RollbackImage.requiredSize(byteLength: size.bytes)
        let medium = try createMedium(image, size: length, force: false)
        let path = image.kind == .ram ? "/dev/shm/" + image.target : image.target
        _ = Interruption.makeTemporaryFile(path) { 0 }
        defer {
            medium.close()
            // What the bench has made and failed to remove is said by the next run, which finds it.
            try? removeMedium(image)
            Interruption.forgetTemporaryFile(path)
        }
        bench.medium = medium
        return try bench.run(kind)
    }

    private func text(_ report: Report) -> String {
        let machine = report.machine
        let head = listing([
            ("memory", "\(readable(ByteCount(report.memoryBytes))), \(writtenPerMille) of 1000 pages written between two checkpoints"),
            ("kept", report.image ?? "in memory"),
            ("machine", "\(machine.processor), \(machine.cores) cores, \(readable(ByteCount(machine.memoryBytes))), \(machine.kernel)"),
            ("figures", "medians of \(counted(report.rounds, "round"))"),
        ])
        var table = Table(columns: [
            ("STRATEGY", .left), ("FIRST WRITE", .right), ("CHECKPOINT (STOP)", .right), ("SETTLED AFTER", .right), ("ROLLBACK (STOP)", .right),
            ("MEMORY", .right), ("BITS", .right),
        ])
        for row in report.rows {
            table.rows.append([
                row.kind.rawValue, "\(decimals(row.firstWriteMicroseconds, 1)) us", "\(decimals(row.checkpointMicroseconds, 0)) us",
                "\(decimals(row.settleMicroseconds, 0)) us", "\(decimals(row.rollbackMicroseconds, 0)) us", readable(ByteCount(row.overheadBytes)),
                readable(ByteCount(row.bitmapBytes)),
            ])
        }
        return head + "\n" + table.text
    }
}
