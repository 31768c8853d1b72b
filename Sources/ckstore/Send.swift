// `ckstore send`.
//
// Invariant: standard output is the stream and nothing else.

import ArgumentParser
import CheckpointStore
import CheckpointStream
import Glibc
import StoreFormat
import Units

struct Send: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Write checkpoints as a stream, for `ckstore receive`.",
        discussion: """
            The stream has the whole checkpoint, or with --from only what changed since one that the receiver has. It goes to standard \
            output, or to a file. What is read is verified, and every part of the stream has a checksum that the receiver holds it against.

            Names that move (`ckstore name`) come with the checkpoints that they lead to, but for `latest`, which each store moves itself; \
            --no-names leaves them out.

            When a stream is cut, the receiver keeps what has come and prints a token; --resume goes on from there.

            Example:
              ckstore send vm.ck monday | ssh host ckstore receive /var/lib/vm.ck
              ckstore send vm.ck tuesday --from monday | ssh host ckstore receive /var/lib/vm.ck
              ckstore send vm.ck friday --from monday --all -o week.stream
              ckstore send vm.ck --all | ckstore receive ram:copy
              ckstore send vm.ck tuesday --resume ck1-... | ssh host ckstore receive /var/lib/vm.ck
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String?
    @Option(help: ArgumentHelp("Send what changed since this checkpoint, which the receiver has.", valueName: "name"))
    var from: String?
    @Flag(help: "Send every checkpoint between --from and the named one, or all that the store has.")
    var all = false
    @Flag(help: "Send no names that move.")
    var noNames = false
    @Option(
        name: [.customShort("o"), .customLong("output")],
        help: ArgumentHelp("Write the stream to a file, which gets its name when it is complete.", valueName: "file"), completion: .file())
    var path: String?
    @Flag(help: "Replace a file that exists.")
    var force = false
    @Option(
        help: ArgumentHelp("Go on from where a receiver says.", valueName: "token"),
        transform: { text in
            guard let token = ResumeToken(text) else { throw ValidationError("'\(text)' is no token as `ckstore receive` prints it.") }
            return token
        })
    var resume: ResumeToken?
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    private var file: RegionFile { RegionFile(region: "", path: path ?? "-") }

    func validate() throws {
        if name == nil, !all, resume == nil { throw ValidationError("Name a checkpoint, or send --all.") }
        if name == nil, from != nil { throw ValidationError("--from needs the name of the checkpoint that it leads to.") }
        if file.isStandard, output.json { throw ValidationError("--json and the stream both want standard output; use --output.") }
    }

    func run() throws {
        Interruption.begin()
        if file.isStandard, isTerminal(1) {
            throw ValidationError("The stream would go to your terminal. Use a pipe, or --output FILE.")
        }
        let store = try target.open(.readOnly)
        defer { store.close() }
        let snapshot = try store.snapshot()
        let items = try continued(try items(snapshot), snapshot)
        guard !items.isEmpty else {
            throw StoreError(.notFound, "the store has no checkpoints to send", medium: store.medium.name)
        }
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let report = try send(items, snapshot, progress)
        guard !file.isStandard else {
            if !output.quiet { standardError(summary(report, progress)) }
            return
        }
        try output.report(Result(report, progress), summary: summary(report, progress))
    }

    private func items(_ snapshot: Snapshot) throws(StoreError) -> [SendItem] {
        guard let name else { return all ? try snapshot.sendItems { _ in false } : [] }
        let newer = try snapshot.checkpoint(named: name)
        let older = try from.map { name throws(StoreError) in try snapshot.checkpoint(named: name) }
        if all { return try snapshot.sendItems(from: older, to: newer) }
        if let older, older.id == newer.id {
            throw StoreError(.invalidInput, "nothing changes from a checkpoint to itself", remedy: "Name two.", checkpoint: name)
        }
        return [SendItem(newer, base: older)]
    }

    /// What is left of it, as the token says.
    private func continued(_ items: [SendItem], _ snapshot: Snapshot) throws(StoreError) -> [SendItem] {
        guard let resume else { return items }
        let base = try resume.base.map { id throws(StoreError) in try snapshot.checkpoint(id) }
        let first = SendItem(try snapshot.checkpoint(resume.checkpoint), base: base, start: resume.position)
        guard !items.isEmpty else { return [first] }
        guard let index = items.firstIndex(where: { $0.checkpoint.id == resume.checkpoint }) else {
            throw StoreError(
                .invalidInput, "the token is for checkpoint \(first.checkpoint.name), which is not among those to send",
                remedy: "Name the same checkpoints as before, or none.")
        }
        guard from == nil || items[index].base?.id == resume.base else {
            throw StoreError(
                .invalidInput,
                "the token goes on with \(base.map { "what changed since checkpoint \($0.name)" } ?? "all of it"), and --from asks for "
                    + "something else", remedy: "Leave --from out, or have the receiver drop what has come (`ckstore receive --discard`).",
                checkpoint: first.checkpoint.name)
        }
        return [first] + items[(index + 1)...]
    }

    private func send(_ items: [SendItem], _ snapshot: Snapshot, _ progress: Progress) throws -> SendReport {
        defer { progress.clear() }
        let options = SendOptions(parallelism: jobs.value, sendsReferences: !noNames, progress: { progress.update($0.bytes) })
        let target = try RestoreTargets.make(file, length: .zero, force: force)
        var report: SendReport?
        let write: (Int32) throws -> Void = { report = try snapshot.send(items, to: $0, options: options) }
        switch target {
        case let file as FileTarget: try file.fill(write)
        case let stream as StreamTarget: try stream.fill(write)
        default: throw StoreError(.invalidInput, "\(file.path) is a block device", remedy: "Name a file or a pipe.")
        }
        try target.publish()
        guard let report else { preconditionFailure("a target that is filled has been written to") }
        return report
    }

    private func summary(_ report: SendReport, _ progress: Progress) -> String {
        let rate = Double(report.streamBytes.rawValue) / progress.elapsedSeconds
        return "sent \(report.checkpoints.map { printable($0.name) }.joined(separator: ", ")): \(report.writtenPages) pages, "
            + "\(readable(report.streamBytes)) in \(oneDecimal(progress.elapsedSeconds)) s (\(readable(bytes: rate))/s)\n"
    }

    private struct Result: Encodable {
        var stream: String
        var checkpoints: [SentCheckpoint]
        /// Names that move and went with them.
        var names: [SentName]
        var writtenPages: UInt64
        var zeroedPages: UInt64
        var streamBytes: UInt64
        /// Runs of pages that went as they are stored, and runs that were made for the stream.
        var storedRuns: Int
        var encodedRuns: Int
        /// Index nodes that were read.
        var nodesRead: Int
        var elapsedSeconds: Double

        init(_ report: SendReport, _ progress: Progress) {
            stream = report.stream.description
            checkpoints = report.checkpoints.map(SentCheckpoint.init)
            names = report.references.map { SentName(name: $0.name, checkpointID: $0.checkpoint.description) }
            writtenPages = report.writtenPages.rawValue
            zeroedPages = report.zeroedPages.rawValue
            streamBytes = report.streamBytes.rawValue
            storedRuns = report.storedRuns
            encodedRuns = report.encodedRuns
            nodesRead = report.counts.nodes
            elapsedSeconds = progress.elapsedSeconds
        }
    }
}

/// A moving name that was sent, as JSON.
private struct SentName: Encodable {
    var name: String
    var checkpointID: String
}

/// A checkpoint that was sent or received, as JSON.
struct SentCheckpoint: Encodable {
    var name: String
    var id: String
    var parentID: String?

    init(_ info: CheckpointInfo) {
        name = info.name
        id = info.id.description
        parentID = info.parent?.description
    }
}
