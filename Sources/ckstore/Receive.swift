// `ckstore receive`.
//
// Invariant: a checkpoint is there, whole, when the command has said so; a stream that is refused leaves nothing that is visible.

import ArgumentParser
import CheckpointStore
import CheckpointStream
import CLinux
import Glibc
import Media
import StoreFormat
import Units

struct Receive: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Take checkpoints from a stream of `ckstore send`.",
        discussion: """
            Reads standard input, or a file. A checkpoint keeps its id, name, labels and time; it is there when all of it has come as it was \
            sent, and not at all before. A stream of changes needs the checkpoint that it is a change of.

            Names that move and come with a checkpoint lead to it from the moment it is there. A name is moved only from a checkpoint that the \
            sender knows or that has an ancestor in common with the new one; one that a checkpoint here has, or that leads to something else, is \
            kept out and reported (exit code 1; the checkpoints are there). --no-names leaves all names as they are.

            When a stream is cut, what has come is kept, hidden: --status says how to go on, --discard drops it.

            A stream can be refused as: duplicate (the checkpoint is there), exists (another one has its name: --as), out-of-order (a stream \
            before it is missing), foreign (nothing from there is here), damaged-stream, cut-stream, not-a-stream, unsupported.

            Example:
              ssh host ckstore send /var/lib/vm.ck monday | ckstore receive vm.ck
              ckstore receive vm.ck --input monday.stream --as copy
              ckstore receive vm.ck --status
              ckstore receive vm.ck --discard
            """)

    @OptionGroup var target: StoreArgument
    @Option(name: .customLong("as"), help: ArgumentHelp("The name for the checkpoint, instead of its own.", valueName: "name"))
    var newName: String?
    @Option(name: .shortAndLong, help: ArgumentHelp("Read the stream from a file.", valueName: "file"), completion: .file())
    var input: String?
    @Flag(help: "Pass checkpoints by that are there already.")
    var skipPresent = false
    @Flag(help: "Set no names that move.")
    var noNames = false
    @Option(
        help: ArgumentHelp("How much comes between two steps that make durable what has come; 256M if not given.", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var step: Size?
    @Flag(help: "Show what has come in part, and how to go on.")
    var status = false
    @Flag(help: "Drop what has come in part.")
    var discard = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if status, discard { throw ValidationError("--status and --discard are two things.") }
        if status || discard, input != nil || newName != nil || skipPresent || noNames || step != nil {
            throw ValidationError("--status and --discard read no stream.")
        }
        if let step, step.bytes == .zero || step.bytes > .gibibytes(1 << 30) { throw ValidationError("--step is \(step.bytes) bytes.") }
    }

    func run() throws {
        Interruption.begin()
        let store = try target.open(status ? .readOnly : .readWrite)
        defer { store.close() }
        if status { return try showStatus(try store.snapshot().partialCheckpoints()) }
        if discard { return try report(dropped: try store.discardPartialCheckpoints()) }
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let report = try receive(store, progress)
        let names = try report.references.map { try AdoptedName($0, in: store) }
        try output.report(Result(report, names, progress), summary: summary(report, progress) + names.compactMap(\.line).joined())
        for adoption in report.references {
            if let conflict = adoption.conflict(in: store) { Failure.report("received, but \(conflict)") }
        }
        if let obstacle = report.obstacle {
            standardError("ckstore: received, but parts of it that were kept on the way are still there: \(obstacle)\n")
            throw ExitCode(ExitStatus.code(for: obstacle))
        }
        if names.contains(where: { $0.conflict != nil }) { throw ExitCode(ExitStatus.failed) }
    }

    private func receive(_ store: CheckpointStore, _ progress: Progress) throws -> ReceiveReport {
        defer { progress.clear() }
        var descriptor: Int32 = 0
        if let input {
            descriptor = unsafe ck_open(input, 0)
            guard descriptor >= 0 else { throw systemError("open", input, -descriptor) }
        } else if isTerminal(0) {
            throw ValidationError("The stream would come from your terminal. Use a pipe, or --input FILE.")
        }
        defer { if descriptor > 0 { close(descriptor) } }
        let cancellation = StreamCancellation()
        Interruption.setCancel { cancellation.cancel() }
        var options = ReceiveOptions(
            name: newName, skipsPresent: skipPresent, setsReferences: !noNames, parallelism: jobs.value,
            progress: { progress.update($0) }, cancellation: cancellation)
        if let step { options.stepBytes = step.bytes }
        return try store.receive(from: descriptor, options: options)
    }

    private func showStatus(_ parts: [PartialCheckpoint]) throws {
        if output.json { return try StandardOutput.write(json: Status(parts: parts.map(Part.init))) }
        guard !parts.isEmpty else { return try StandardOutput.write("nothing has come in part\n") }
        for part in parts {
            try StandardOutput.write(
                listing([
                    ("checkpoint", printable(part.name)), ("id", part.checkpoint.description),
                    ("change of", part.base?.description ?? "- (sent in full)"), ("from store", part.origin.description),
                    ("stored", readable(part.info.storedBytes)), ("go on with", "ckstore send STORE --resume \(part.token)"),
                ]))
        }
    }

    private func report(dropped: [PartialCheckpoint]) throws {
        let names = dropped.map { printable($0.name) }.joined(separator: ", ")
        try output.report(
            Status(parts: dropped.map(Part.init)),
            summary: dropped.isEmpty ? "nothing had come in part\n" : "dropped what had come of \(names)\n")
    }

    private func summary(_ report: ReceiveReport, _ progress: Progress) -> String {
        let rate = Double(report.streamBytes.rawValue) / progress.elapsedSeconds
        let names = report.received.map { printable($0.name) }.joined(separator: ", ")
        let skipped = report.skipped.isEmpty ? "" : ", \(counted(report.skipped.count, "checkpoint")) passed by"
        return "received \(names.isEmpty ? "nothing" : names): \(report.writtenPages) pages, "
            + "\(readable(report.streamBytes)) in \(oneDecimal(progress.elapsedSeconds)) s (\(readable(bytes: rate))/s)\(skipped)\n"
    }

    private struct Part: Encodable {
        var name: String
        var id: String
        var baseID: String?
        var origin: String
        var stream: String
        var storedBytes: UInt64
        var token: String

        init(_ part: PartialCheckpoint) {
            name = part.name
            id = part.checkpoint.description
            baseID = part.base?.description
            origin = part.origin.description
            stream = part.stream.description
            storedBytes = part.info.storedBytes.rawValue
            token = part.token.description
        }
    }

    private struct Status: Encodable {
        var parts: [Part]
    }

    private struct Result: Encodable {
        var stream: String
        var origin: String
        var checkpoints: [SentCheckpoint]
        var skipped: [String]
        /// What became of the names that came with them.
        var names: [AdoptedName]
        var writtenPages: UInt64
        var zeroedPages: UInt64
        var streamBytes: UInt64
        var elapsedSeconds: Double
        /// Why parts that were kept on the way are still there; absent when all is well.
        var obstacle: FailureObject?

        init(_ report: ReceiveReport, _ names: [AdoptedName], _ progress: Progress) {
            stream = report.stream.description
            origin = report.origin.description
            checkpoints = report.received.map(SentCheckpoint.init)
            skipped = report.skipped.map(\.description)
            self.names = names
            writtenPages = report.writtenPages.rawValue
            zeroedPages = report.zeroedPages.rawValue
            streamBytes = report.streamBytes.rawValue
            elapsedSeconds = progress.elapsedSeconds
            obstacle = report.obstacle.map(FailureObject.init)
        }
    }
}
