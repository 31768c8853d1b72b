// `ckstore vm resume`.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Media
import QEMUEngine
import Units

struct VMResume: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "resume",
        abstract: "Go on with a lazy restore that was interrupted.",
        discussion: """
            The machine waits for memory that `ckstore vm restore --lazy` did not bring before it ended. It is asked what it has, and gets the \
            rest. A machine that was started from another checkpoint is refused. Needs the right to trace QEMU's process: its user's, or root's.

            Example:
              ckstore vm resume vm.ck monday --qmp /run/vm.qmp
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint that was being restored.")
    var name: String
    @Option(help: ArgumentHelp("The socket of the machine's QMP monitor.", valueName: "socket"), completion: .file())
    var qmp: String?
    @Option(help: ArgumentHelp("The process of the machine, where it has no monitor.", valueName: "id"))
    var process: Int32?
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard (qmp == nil) != (process == nil) else { throw ValidationError("Name the machine: --qmp SOCKET, or --process ID.") }
        if let process, process <= 0 { throw ValidationError("--process is \(process); it is the number of a process.") }
    }

    func run() throws {
        let start = wallClockNanoseconds()
        let store = try target.open(.readOnly)
        defer { store.close() }
        let source = try StoreBackedDataStore(store).source(name)
        let machine = try process ?? QEMUResume.process(atMonitor: qmp ?? "")
        let progress = Progress(isShown: output.showsProgress, total: nil)
        defer { progress.clear() }
        let counts = try QEMUResume.run(source, process: machine) { progress.update($0.dataPages.bytes) }
        let result = RestoreResult(
            checkpoint: name, lazy: true, running: nil, loadedMilliseconds: nil,
            completeMilliseconds: Double(wallClockNanoseconds() - start) / 1e6, counts)
        progress.clear()
        try output.report(result, summary: "resumed \(name): \(result.summary)\n")
    }
}
