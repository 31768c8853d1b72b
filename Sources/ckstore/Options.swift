// Options that several commands share.

import ArgumentParser
import CheckpointStore
import Media
import Units

/// The store that a command works on.
struct StoreArgument: ParsableArguments {
    @Argument(
        help: "The store: file:PATH, raw:DEVICE, flash:PATH or ram:NAME; a path alone means file:.",
        completion: .file(), transform: { text in try Locator(text) })
    var store: Locator

    /// Opens it.
    func open(_ access: MediumAccess, generation: Generation? = nil) throws -> CheckpointStore {
        try CheckpointStore.open(try openMedium(store, access: access), generation: generation)
    }
}

/// How a command reports.
struct OutputOptions: ParsableArguments {
    @Flag(help: "Print the result, or the error, as JSON on standard output.")
    var json = false

    @Flag(name: .shortAndLong, help: "Print no progress and no summary.")
    var quiet = false

    /// Progress is for people who watch.
    var showsProgress: Bool { !json && !quiet && isTerminal(2) }

    /// Prints `summary` for people, or `value` for programs.
    func report(_ value: some Encodable, summary: @autoclosure () -> String) throws {
        if json {
            try StandardOutput.write(json: value)
        } else if !quiet {
            try StandardOutput.write(summary())
        }
    }
}

/// Which state of the store a reading command looks at.
struct GenerationOption: ParsableArguments {
    @Option(
        help: ArgumentHelp(
            "Look at an older state of the store.",
            discussion: "Each change of the store makes a new generation; a few of the last can still be opened.",
            valueName: "n"))
    var generation: UInt64?

    var value: Generation? { generation.map { Generation($0) } }
}

/// How many threads work.
struct JobsOption: ParsableArguments {
    @Option(name: .shortAndLong, help: ArgumentHelp("Threads that work at once; as many as there are cores if not given.", valueName: "n"))
    var jobs: Int?

    static let most = 256

    func validate() throws {
        if let jobs, !(1...Self.most).contains(jobs) {
            throw ValidationError("--jobs is \(jobs); it can be 1 to \(Self.most).")
        }
    }

    var value: Int { jobs ?? min(WriterOptions.defaultParallelism, Self.most) }
}

/// Names that a new checkpoint takes over.
struct PointOption: ParsableArguments {
    @Option(
        help: ArgumentHelp("Point this name that moves at the new checkpoint, in the same step; may be repeated.", valueName: "name"))
    var point: [String] = []
}
