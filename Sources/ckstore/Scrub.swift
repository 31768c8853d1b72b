// `ckstore scrub`.

import ArgumentParser
import CheckpointStore
import Glibc
import Media
import Units

struct Scrub: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Verify again and again in the background, beside everybody else.",
        discussion: """
            Like verify, but slowly and without standing in anybody's way: it runs at a low rate, holds back the reuse of freed \
            space only for the time of reading a few MiB, and goes on where it was when checkpoints come and go. Checkpoints that \
            are deleted meanwhile are no damage; new ones are looked at in the next pass. Reports each pass; ends with a signal, or \
            with --once after one pass, then with 3 when there is damage. The store can't be shrunk while it is open here.

            Example:
              ckstore scrub vm.ck
              ckstore scrub vm.ck --rate 100M --interval 7d --json >> scrub.log
              ckstore scrub vm.ck --once
            """)

    @OptionGroup var target: StoreArgument
    @Option(
        help: ArgumentHelp("Read at most so many bytes a second (default: 32M).", valueName: "size"),
        transform: { try Size(parsing: $0) })
    var rate: Size?
    @Option(
        help: ArgumentHelp("From the start of a pass to the start of the next: 90s, 30m, 24h, 7d (default: 24h).", valueName: "time"),
        transform: { try Interval(parsing: $0) })
    var interval: Interval?
    @Flag(help: "End after one pass.")
    var once = false
    @Flag(help: "Also unpack every page and compare it with its hash.")
    var deep = false
    @OptionGroup var output: OutputOptions

    private static let defaultInterval = Interval(seconds: 86400)

    func validate() throws {
        if rate?.bytes == .zero { throw ValidationError("--rate is 0: nothing would ever be read.") }
        if once, interval != nil { throw ValidationError("--once makes one pass; --interval is for many. Give one of them.") }
    }

    func run() throws {
        let store = try target.open(.readOnly)
        defer { store.close() }
        while true {
            let progress = Progress(isShown: output.showsProgress, total: nil)
            let options = ScrubOptions(bytesPerSecond: rate?.bytes ?? ScrubOptions.defaultBytesPerSecond, checksPages: deep) { done in
                progress.expect(done.expectedBytes)
                progress.update(done.bytes)
            }
            let pass: ScrubPass
            do {
                defer { progress.clear() }
                pass = try Scrubber(store, options: options).pass()
            }
            try report(pass, medium: store.medium.name, seconds: progress.elapsedSeconds)
            if once {
                if !pass.report.isSound { throw ExitCode(ExitStatus.corrupt) }
                return
            }
            sleep(UInt32(max(1, Double((interval ?? Self.defaultInterval).seconds) - progress.elapsedSeconds)))
        }
    }

    private func report(_ pass: ScrubPass, medium: String, seconds: Double) throws {
        let verified = VerifyObject(pass.report, medium: medium, seconds: seconds)
        var summary = verified.summary
        if pass.vanishedCheckpoints > 0 {
            summary.removeLast()
            summary += ", \(counted(pass.vanishedCheckpoints, "checkpoint")) deleted meanwhile\n"
        }
        if !output.json { standardError(pass.report.damageText) }
        try output.report(Result(pass: verified, vanishedCheckpoints: pass.vanishedCheckpoints, comparesCounts: pass.comparesCounts), summary: summary)
    }

    /// One line for each pass.
    private struct Result: Encodable {
        var pass: VerifyObject
        var vanishedCheckpoints: Int
        /// Whether the segments' counts were compared, since nothing was committed during the pass.
        var comparesCounts: Bool
    }
}

/// A time, as people write it: 90s, 30m, 24h, 7d; without a unit seconds.
struct Interval {
    var seconds: UInt32

    init(seconds: UInt32) { self.seconds = seconds }

    /// Throws `ValidationError` for anything that is no time from one second to about a century.
    init(parsing text: String) throws {
        let units: [Character: UInt64] = ["s": 1, "m": 60, "h": 3600, "d": 86400]
        let unit = text.last.flatMap { units[$0] }
        let digits = unit == nil ? text[...] : text.dropLast()
        guard digits.allSatisfy({ $0.isASCII && $0.isNumber }), let number = UInt64(digits), number > 0,
            case let (value, overflow) = number.multipliedReportingOverflow(by: unit ?? 1), !overflow, value <= UInt64(Int32.max)
        else { throw ValidationError("'\(text)' is not a time. Write a number with s, m, h or d (24h).") }
        seconds = UInt32(value)
    }
}
