// What the commands that bring machines back tell people and programs.

import CheckpointCore
import CheckpointStore
import QEMUEngine
import Synchronization
import Units

/// Follows one restore. Thread-safe.
final class RestoreReport: Sendable {
    private let name: String
    private let isLazy: Bool
    private let output: OutputOptions
    private let startMicroseconds: UInt64
    private let progress: Progress
    private let state = Mutex((loaded: UInt64?.none, isRunning: false, counts: RestoreCounts?.none, isReported: false))

    /// The command starts now.
    init(_ name: String, isLazy: Bool, _ output: OutputOptions) {
        self.name = name
        self.isLazy = isLazy
        self.output = output
        startMicroseconds = Self.now()
        progress = Progress(isShown: output.showsProgress, total: nil)
    }

    private static func now() -> UInt64 { wallClockNanoseconds() / 1000 }

    func take(_ event: QEMURestore.Event) {
        switch event {
        case .progress(let counts): progress.update(counts.dataPages.bytes)
        case .loaded(let instant, let isRunning):
            let elapsed = instant - min(instant, startMicroseconds)
            say("the machine \(isRunning ? "runs" : "has its state and is paused") after \(oneDecimal(Double(elapsed) / 1000)) ms\n")
            state.withLock { ($0.loaded, $0.isRunning) = (elapsed, isRunning) }
            reportWhenComplete()
        case .complete(let counts):
            state.withLock { $0.counts = counts }
            reportWhenComplete()
        case .interrupted(let error, let process):
            progress.clear()
            // The machine is there and waits: this command stays with it.
            Failure.report(
                EngineError(
                    error.code, "the machine waits, since its memory does not arrive any more: \(error.reason)",
                    remedy: "\(error.remedy.isEmpty ? "" : error.remedy + " ")To go on: ckstore vm resume STORE \(name) --process \(process) (two signals to this command end the machine)",
                    place: error.storeError?.region ?? error.place).description)
        }
    }

    func clear() { progress.clear() }

    private func say(_ text: String) {
        guard !output.json, !output.quiet else { return }
        progress.clear()
        standardError("ckstore: \(text)")
    }

    /// Both have to have come: the end of sending and the start of the machine, in whatever order.
    private func reportWhenComplete() {
        let (loaded, isRunning, counts) = state.withLock { state -> (UInt64?, Bool, RestoreCounts?) in
            guard state.loaded != nil, state.counts != nil, !state.isReported else { return (nil, false, nil) }
            state.isReported = true
            return (state.loaded, state.isRunning, state.counts)
        }
        guard let loaded, let counts else { return }
        let now = Self.now()
        let complete = Double(now - min(now, startMicroseconds)) / 1000
        let result = RestoreResult(
            checkpoint: name, lazy: isLazy, running: isRunning, loadedMilliseconds: Double(loaded) / 1000,
            completeMilliseconds: complete, counts)
        if output.json {
            // Whoever read it has gone; the machine is no concern of theirs.
            try? StandardOutput.write(json: result)
        } else {
            say("all memory is there after \(oneDecimal(complete)) ms: \(result.summary)\n")
        }
    }
}

/// What was restored, as JSON.
struct RestoreResult: Encodable {
    var checkpoint: String
    var lazy: Bool
    /// False when the machine was paused at the checkpoint, or was to be (-S); absent for a resumed restore.
    var running: Bool?
    /// From the start of the command until the machine had its state, and ran if it was to; absent for a resumed restore.
    var loadedMilliseconds: Double?
    /// From the start of the command until all memory was in the machine.
    var completeMilliseconds: Double
    var dataPages: UInt64
    var zeroPages: UInt64
    var sentBytes: UInt64
    /// How often the running machine waited for a page.
    var pageRequests: Int

    init(
        checkpoint: String, lazy: Bool, running: Bool?, loadedMilliseconds: Double?, completeMilliseconds: Double, _ counts: RestoreCounts
    ) {
        self.checkpoint = checkpoint
        self.lazy = lazy
        self.running = running
        self.loadedMilliseconds = loadedMilliseconds
        self.completeMilliseconds = completeMilliseconds
        dataPages = counts.dataPages.rawValue
        zeroPages = counts.zeroPages.rawValue
        sentBytes = counts.sentBytes.rawValue
        pageRequests = counts.requestCount
    }

    var summary: String {
        "\(dataPages) pages with data, \(zeroPages) zero pages, \(readable(ByteCount(sentBytes))) sent"
            + (lazy ? ", \(pageRequests) asked for" : "")
    }
}
