// `ckstore vm rescue`.

import ArgumentParser
import CheckpointCore
import QEMUEngine
import QMP

struct VMRescue: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "rescue",
        abstract: "Bring a machine back whose checkpoint was killed together with its guard.",
        discussion: """
            Takes write protection off the guest's memory, waits for QEMU's own snapshot to end, commits disk overlays back \
            and removes them. It changes nothing where nothing is amiss, and is refused while a checkpoint of the machine, or \
            the guard of one that was killed, is at work. A guest that stands still stays so unless --continue is given: somebody may have stopped it on purpose.

            Example:
              ckstore vm rescue --qmp /run/vm1.qmp --continue
            """)

    @Option(help: ArgumentHelp("The machine's monitor socket.", valueName: "path"), completion: .file())
    var qmp: String
    @Option(
        help: ArgumentHelp("QEMU's process, for a monitor that does not answer; asked of the socket if not given.", valueName: "pid"))
    var pid: Int32?
    @Flag(help: "Let the guest run if it stands still.")
    var `continue` = false
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if let pid, pid <= 0 { throw ValidationError("--pid is \(pid); a process has a positive number.") }
    }

    func run() throws {
        Interruption.begin()
        let process = try pid ?? QMPClient.processID(listeningAt: qmp)
        let claim = try MachineClaim(processID: process)
        defer { withExtendedLifetime(claim) {} }
        let rescue = GuestRescue(processID: process, mayContinue: self.continue)
        let done = try rescue.run { () throws(EngineError) in try QMPClient.connect(path: qmp) }
        try output.report(
            RescueResult(done: done),
            summary: done.isEmpty ? "nothing to do: the machine is as it should be\n" : done.map { "\($0)\n" }.joined())
    }
}

private struct RescueResult: Encodable {
    var done: [String]
}
