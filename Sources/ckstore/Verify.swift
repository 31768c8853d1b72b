// `ckstore verify`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Verify: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Check everything that is stored.",
        discussion: """
            Reads every stored byte that checkpoints reach, once, and compares it with its checksum; with --deep also \
            unpacks it and compares each page. Every damaged place is named once, with the checkpoints, regions and pages that it \
            takes away; everything else can still be restored. `ckstore repair` brings back what can be had again: blocks of the index \
            from others of the store, pages from a replica. Exits with 3 when there is any.

            Example:
              ckstore verify vm.ck
              ckstore verify vm.ck monday --deep
              ckstore verify vm.ck --rate 200M
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The checkpoint to check; all of them, with the catalog, if not given.")
    var name: String?
    @Flag(help: "Also unpack every page and compare it with its hash.")
    var deep = false
    @OptionGroup var rate: RateOption
    @OptionGroup var generation: GenerationOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let options = VerifyOptions(checksPages: deep, parallelism: jobs.value, bytesPerSecond: rate.value) { done in
            progress.expect(done.expectedBytes)
            progress.update(done.bytes)
        }
        let report: VerifyReport
        do {
            defer { progress.clear() }
            report = try store.verify(checkpoint: name, options: options)
        }
        let result = VerifyObject(report, medium: store.medium.name, seconds: progress.elapsedSeconds)
        if !output.json { standardError(report.damageText + report.hint) }
        try output.report(result, summary: result.summary)
        if !report.isSound { throw ExitCode(ExitStatus.corrupt) }
    }
}

/// A bound on bytes a second.
struct RateOption: ParsableArguments {
    @Option(
        help: ArgumentHelp("Read at most so many bytes a second, over all threads.", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var rate: Size?

    func validate() throws {
        if rate?.bytes == .zero { throw ValidationError("--rate is 0: nothing would ever be read. Leave it out for no limit.") }
    }

    var value: ByteCount? { rate?.bytes }
}

/// What verifying found.
struct VerifyObject: Encodable {
    var medium: String
    var generation: UInt64
    var isSound: Bool
    var checkpointCount: Int
    var verifiedBlocks: Int
    var verifiedBytes: UInt64
    var seconds: Double
    /// What counts as alive though nothing reaches it.
    var lostPages: UInt64
    var lostBytes: UInt64
    var damages: [DamageObject]
    /// What remains of the regions that have lost something.
    var damagedRegions: [DamagedRegionObject]

    init(_ report: VerifyReport, medium: String, seconds: Double) {
        self.medium = medium
        self.seconds = seconds
        generation = report.generation.rawValue
        isSound = report.isSound
        checkpointCount = report.checkpointCount
        verifiedBlocks = report.blocks
        verifiedBytes = report.bytes.rawValue
        lostPages = report.lostPages.rawValue
        lostBytes = report.lostBytes.rawValue
        damages = report.damages.map(DamageObject.init)
        damagedRegions = report.damagedRegions.map(DamagedRegionObject.init)
    }

    var summary: String {
        let read =
            "\(counted(checkpointCount, "checkpoint")), \(readable(ByteCount(verifiedBytes))) in \(counted(verifiedBlocks, "block")), "
            + "\(readable(bytes: Double(verifiedBytes) / max(seconds, 1e-9)))/s"
        guard isSound else { return "\(medium): \(counted(damages.count, "damaged place")) (looked at \(read))\n" }
        let lost = lostPages + lostBytes == 0 ? "" : "; \(lostPages) pages and \(readable(ByteCount(lostBytes))) of index are counted as alive and not reached"
        return "\(medium): sound (\(read))\(lost)\n"
    }
}
