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
            unpacks it and compares each page. Every damage is named with the checkpoints, regions and pages that it \
            concerns; everything else can still be restored. Exits with 3 when there is any.

            Example:
              ckstore verify vm.ck
              ckstore verify vm.ck monday --deep
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The checkpoint to check; all of them, with the catalog, if not given.")
    var name: String?
    @Flag(help: "Also unpack every page and compare it with its hash.")
    var deep = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        // How much is shared, and hence how much there is to read, is not known before it has been read.
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let options = VerifyOptions(checksPages: deep, parallelism: jobs.value) { done in progress.update(done) }
        let report: VerifyReport
        do {
            defer { progress.clear() }
            report = try store.verify(checkpoint: name, options: options)
        }
        let result = Result(report, medium: store.medium.name)
        for damage in report.damages where !output.json { standardError("ckstore: damaged: \(damage)\n") }
        try output.report(result, summary: result.summary)
        if !report.isSound { throw ExitCode(ExitStatus.corrupt) }
    }

    private struct DamageObject: Encodable {
        var checkpoint: String?
        var region: String?
        var pages: PageRangeObject?
        var offsetBytes: UInt64?
        var message: String
    }

    private struct Result: Encodable {
        var medium: String
        var generation: UInt64
        var isSound: Bool
        var checkpointCount: Int
        var verifiedBlocks: Int
        var verifiedBytes: UInt64
        /// What counts as alive though nothing reaches it.
        var lostPages: UInt64
        var lostBytes: UInt64
        var damages: [DamageObject]

        init(_ report: VerifyReport, medium: String) {
            self.medium = medium
            generation = report.generation.rawValue
            isSound = report.isSound
            checkpointCount = report.checkpointCount
            verifiedBlocks = report.blocks
            verifiedBytes = report.bytes.rawValue
            lostPages = report.lostPages.rawValue
            lostBytes = report.lostBytes.rawValue
            damages = report.damages.map { damage in
                DamageObject(
                    checkpoint: damage.checkpoint, region: damage.region, pages: damage.pages.map(PageRangeObject.init),
                    offsetBytes: damage.offset?.rawValue, message: damage.reason)
            }
        }

        var summary: String {
            let read =
                "\(counted(checkpointCount, "checkpoint")), \(readable(ByteCount(verifiedBytes))) in "
                + counted(verifiedBlocks, "block")
            guard isSound else { return "\(medium): \(counted(damages.count, "damaged place")) (looked at \(read))\n" }
            let lost = lostPages + lostBytes == 0 ? "" : "; \(lostPages) pages and \(readable(ByteCount(lostBytes))) of index are counted as alive and not reached"
            return "\(medium): sound (\(read))\(lost)\n"
        }
    }
}
