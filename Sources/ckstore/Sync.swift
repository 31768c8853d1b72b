// `ckstore sync`.
//
// Invariant: each checkpoint is durable in the target before the next is begun, and before it may go at the source.

import ArgumentParser
import CheckpointStore
import CheckpointStream
import Media
import Threading
import Units

struct Sync: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Bring one store up to another.",
        discussion: """
            The target gets the checkpoints that it lacks, parents first, each as a change of one that it has; they keep their ids, names, \
            labels and times. What was interrupted goes on from where it was.

            Names that move (`ckstore name`) lead in the target where they lead in the source, but for `latest`, which each store moves itself. \
            Names that only the target has stay. A name that is something else's in the target is kept out and reported (exit code 1). \
            --no-names leaves all as they are.

            With --follow it goes on and copies each new checkpoint as it comes, until it is interrupted: that is how a fast store is \
            drained into a lasting one. Where a store is busy or full meanwhile, that is reported and tried again. --keep-source N deletes at the source what the target has, but for the N newest and what names lead to.

            Example:
              ckstore sync vm.ck raw:/dev/sdb1
              ckstore sync ram:vm /var/lib/vm.ck --follow --interval 5 --keep-source 3
            """)

    @OptionGroup var source: StoreArgument
    @Argument(
        help: "The store that is brought up to the first.", completion: .file(), transform: { text in try Locator(text) })
    var copy: Locator
    @Flag(help: "Go on until interrupted.")
    var follow = false
    @Option(help: ArgumentHelp("Seconds between two looks at the source; 2 if not given.", valueName: "seconds"))
    var interval: Int?
    @Option(help: ArgumentHelp("Delete at the source what the target has, but for the n newest.", valueName: "n"))
    var keepSource: Int?
    @Flag(help: "Set no names that move.")
    var noNames = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    private static let longestInterval = 86400

    func validate() throws {
        if let interval, !(1...Self.longestInterval).contains(interval) {
            throw ValidationError("--interval is \(interval); it can be 1 to \(Self.longestInterval) seconds.")
        }
        if interval != nil, !follow { throw ValidationError("--interval needs --follow.") }
        if let keepSource, keepSource < 0 { throw ValidationError("--keep-source is \(keepSource).") }
    }

    func run() throws {
        Interruption.begin()
        let from = try source.open(keepSource == nil ? .readOnly : .readWrite)
        defer { from.close() }
        let to = try CheckpointStore.open(try openMedium(copy, access: .readWrite))
        defer { to.close() }
        guard from.uuid != to.uuid else {
            throw StoreError(.invalidInput, "the two stores are one", remedy: "Name another target.", medium: to.medium.name)
        }
        let cancellation = StreamCancellation()
        // Lets a wait between two looks end at once.
        let pause = Lock(false)
        Interruption.setCancel {
            cancellation.cancel()
            pause.withLock { $0 = true }
            pause.wake()
        }
        let told = Lock(Set<Told>())
        // What is in the way is said once, for as long as it stays.
        var obstacle: StoreError.Code?
        repeat {
            do {
                try pass(from, to, cancellation, told)
                obstacle = nil
            } catch let error as StoreError where follow {
                // Interrupted is how following ends.
                if error.code == .cancelled { return }
                guard [.busy, .noSpace].contains(error.code) else { throw error }
                if obstacle != error.code { Failure.report(error.description) }
                obstacle = error.code
            }
            guard follow else { return }
        } while pause.waitFor(milliseconds: (interval ?? 2) * 1000) { $0 ? () : nil } == nil
    }

    /// What was kept out: it is said once, however often it is looked at.
    private enum Told: Hashable {
        case name(ReferenceAdoption)
        case checkpoint(CheckpointID)

        init?(_ event: SyncEvent) {
            switch event {
            case .named(let adoption) where !adoption.isChange: self = .name(adoption)
            case .passedBy(let info): self = .checkpoint(info.id)
            default: return nil
            }
        }
    }

    private func pass(
        _ from: CheckpointStore, _ to: CheckpointStore, _ cancellation: StreamCancellation, _ told: Lock<Set<Told>>
    ) throws {
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let failure = Lock<(any Error)?>(nil)
        let (json, quiet) = (output.json, output.quiet)
        let options = SyncOptions(
            keptAtSource: keepSource, setsReferences: !noNames, parallelism: jobs.value,
            event: { event in
                if case .began(let item) = event { return progress.begin(item.checkpoint.name) }
                progress.clear()
                if let known = Told(event), !told.withLock({ $0.insert(known).inserted }) { return }
                // A line that can't be written ends the work: nobody would know what is there.
                do { try Self.report(event, to, json: json, quiet: quiet) } catch {
                    failure.withLock { $0 = error }
                    cancellation.cancel()
                }
            }, progress: { progress.update($0) }, cancellation: cancellation)
        defer { progress.clear() }
        let report: SyncReport
        do { report = try from.copyCheckpoints(to: to, options: options) } catch {
            throw failure.withLock { $0 } ?? error
        }
        if let failure = failure.withLock({ $0 }) { throw failure }
        guard !follow else { return }
        let elapsed = progress.elapsedSeconds
        try output.report(
            Done(
                copied: report.copied.count, namesSet: report.references.count(where: \.isChange), deleted: report.deleted.count,
                streamBytes: report.streamBytes.rawValue, elapsedSeconds: elapsed),
            summary: "\(counted(report.copied.count, "checkpoint")) copied, \(readable(report.streamBytes)) in \(oneDecimal(elapsed)) s\n")
        if report.references.contains(where: { $0.conflict(in: to) != nil }) { throw ExitCode(ExitStatus.failed) }
    }

    /// One line for each checkpoint and each name.
    private static func report(_ event: SyncEvent, _ to: CheckpointStore, json: Bool, quiet: Bool) throws {
        switch event {
        case .began: return
        case .copied(let item, let report):
            if json { return try StandardOutput.write(json: Copied(item, report)) }
            guard !quiet else { return }
            try StandardOutput.write(
                "copied \(printable(item.checkpoint.name))"
                    + (item.base.map { ", changes since \(printable($0.name))" } ?? ", in full")
                    + ": \(report.writtenPages) pages, \(readable(report.streamBytes))\n")
        case .named(let adoption):
            let name = try AdoptedName(adoption, in: to)
            if let conflict = adoption.conflict(in: to) { Failure.report("\(conflict)") }
            if json { return try StandardOutput.write(json: Named(named: name)) }
            if !quiet, let line = name.line { try StandardOutput.write(line) }
        case .passedBy(let info):
            if json { return try StandardOutput.write(json: PassedBy(passedBy: SentCheckpoint(info))) }
            if !quiet { try StandardOutput.write("passed \(printable(info.name)) by: deleted in the target, where it still joins branches\n") }
        case .deletedAtSource(let info):
            if json { return try StandardOutput.write(json: Deleted(deletedAtSource: SentCheckpoint(info))) }
            if !quiet { try StandardOutput.write("deleted \(printable(info.name)) at the source\n") }
        }
    }

    private struct Copied: Encodable {
        var copied: SentCheckpoint
        /// Absent when it was sent in full.
        var baseID: String?
        var writtenPages: UInt64
        var zeroedPages: UInt64
        var streamBytes: UInt64

        init(_ item: SendItem, _ report: ReceiveReport) {
            copied = SentCheckpoint(item.checkpoint)
            baseID = item.base?.id.description
            writtenPages = report.writtenPages.rawValue
            zeroedPages = report.zeroedPages.rawValue
            streamBytes = report.streamBytes.rawValue
        }
    }

    private struct Named: Encodable {
        var named: AdoptedName
    }

    private struct Deleted: Encodable {
        var deletedAtSource: SentCheckpoint
    }

    private struct PassedBy: Encodable {
        var passedBy: SentCheckpoint
    }

    private struct Done: Encodable {
        var copied: Int
        var namesSet: Int
        var deleted: Int
        var streamBytes: UInt64
        var elapsedSeconds: Double
    }
}
