// `ckstore bench-live`.

import ArgumentParser
import CheckpointStore
import Glibc
import MachineMemory
import Media
import Units

struct LiveBench: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "bench-live",
        abstract: "Measure checkpoints of memory that is being written, beside fork().",
        discussion: """
            Takes checkpoints of real memory of this process into a scratch store on STORE, and forks the same bytes in the same run, the way \
            in which Redis saves: how long the writers stand still, what a write costs meanwhile, what they get done, what memory it takes. \
            The scratch store is removed at the end; nothing that was there before is touched without --force.

            Needs root or CAP_SYS_PTRACE (or the sysctl vm.unprivileged_userfaultfd), memory for three times the size, and three times the size on \
            the medium. A size of 1G takes about two minutes for each kind of memory.

            Example:
              ckstore bench-live bench.ck
              ckstore bench-live ram:bench --size 256M --kind anonymous --kind shared --json
              sysctl vm.nr_hugepages=600 && ckstore bench-live bench.ck --kind huge
            """)

    /// Which memory.
    enum Kind: String, CaseIterable, ExpressibleByArgument {
        case anonymous
        case transparentHuge = "transparent-huge"
        case shared
        case huge

        var sharing: GuestMemory.Sharing { self == .shared ? .shared : .anonymous }
        var pages: GuestMemory.Pages {
            switch self {
            case .anonymous, .shared: .base
            case .transparentHuge: .transparentHuge
            case .huge: .huge
            }
        }
    }

    @OptionGroup var target: StoreArgument
    @Option(help: ArgumentHelp("How much memory.", valueName: "size"), transform: { try Size(parsing: $0) })
    var size = try! Size(parsing: "1G")
    @Option(help: ArgumentHelp("The memory's content: this file, such as a guest's memory, repeated as needed.", valueName: "file"), completion: .file())
    var image: String?
    @Option(help: "Kinds of memory: anonymous, transparent-huge, shared, huge (from the system's pool). All but the last if not given.")
    var kind: [Kind] = [.anonymous, .transparentHuge, .shared]
    @Option(help: ArgumentHelp("How often everything is measured.", valueName: "n"))
    var rounds = 5
    @Flag(help: "Replace what is on the medium.")
    var force = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if !(1...100).contains(rounds) { throw ValidationError("--rounds is \(rounds); it can be 1 to 100.") }
        if !(ByteCount.mebibytes(16)...ByteCount.gibibytes(64)).contains(size.bytes) || size.bytes.rawValue % (2 << 20) != 0 {
            throw ValidationError("--size is \(size.bytes) bytes; it can be 16M to 64G, a multiple of 2M.")
        }
    }

    func run() throws {
        Interruption.begin()
        let say: (String) -> Void = { [output] text in if output.showsProgress { standardError("\r\(text)\u{1B}[K") } }
        defer { if output.showsProgress { standardError("\r\u{1B}[K") } }
        // Refused before anything is made: what is missing is said.
        let features = try KernelFeatures.current()
        let content = try image.map { try BenchImage.load($0, limit: size.bytes) } ?? BenchImage.build(size: size.bytes, say: say)
        // Only the memory that is measured is to be forked.
        unsafe madvise(content.memory.base, content.memory.count, MADV_DONTFORK)
        let scratch = try BenchScratch(target.store, size: ByteCount(size.bytes.rawValue * 3).roundedUp(to: 2 << 20) + .mebibytes(256), force: force)
        var report: LiveBenchReport
        do {
            let store = try scratch.makeStore()
            report = LiveBenchReport(
                medium: store.medium.name, memoryBytes: size.bytes.rawValue, source: content.source, rounds: rounds, limitations: features.limitations)
            store.close()
            for kind in kind {
                let run = try LiveBenchRun(kind, content, size.bytes, scratch, rounds: rounds, workers: jobs.value) { say("\(kind.rawValue): \($0)") }
                report.rows += try run.rows()
            }
        } catch {
            // The first error is the one to tell.
            try? scratch.remove()
            throw error
        }
        try scratch.remove()
        try output.report(report, summary: report.text)
    }
}
