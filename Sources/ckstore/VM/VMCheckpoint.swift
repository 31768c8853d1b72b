// `ckstore vm checkpoint`.
//
// Invariant: however it ends, the guest runs and its disk chain is as it was; the checkpoint is there, whole, when the command has
// said so, or has said that it is taken but the disks were not put back, and not there at all otherwise.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import QEMUEngine
import Units

struct VMCheckpoint: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "checkpoint",
        abstract: "Take a checkpoint of a running QEMU machine.",
        discussion: """
            The machine needs a monitor socket that nobody else is connected to: start QEMU with \
            -qmp unix:PATH,server=on,wait=off and give --qmp PATH. Its memory, device state and every writable disk are saved as \
            they are at one instant; it stands still for milliseconds, and its pages go into the store while it runs.

            Engines:
              background  QEMU's own background snapshot; nothing is asked of the machine but memory that is not in a file on disk
              external    for memory that is shared (-object memory-backend-memfd,id=mem,size=4G,share=on and
                          -machine ...,memory-backend=mem): the shortest stop, and only what changed is read twice
              auto        external where the machine allows it, else background

            With --parent or --latest only pages that differ from that checkpoint take space.

            Cancelled, failed or killed, it leaves the guest running, its disks as they were and nothing in the store; \
            a guard process sees to that. Should both be killed, run `ckstore vm rescue`.

            Example:
              ckstore vm checkpoint vm.ck monday --qmp /run/vm1.qmp
              ckstore vm checkpoint vm.ck tuesday --qmp /run/vm1.qmp --latest
              ckstore vm checkpoint vm.ck now --qmp /run/vm1.qmp --latest --engine external --json
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the new checkpoint.")
    var name: String
    @Option(help: ArgumentHelp("The machine's monitor socket.", valueName: "path"), completion: .file())
    var qmp: String
    @Option(help: ArgumentHelp("The checkpoint to store the differences from.", valueName: "name"))
    var parent: String?
    @Flag(help: "Store the differences from the newest checkpoint; all, if there is none.")
    var latest = false
    @Option(help: ArgumentHelp("How memory is captured: background, external or auto.", valueName: "engine"))
    var engine: CaptureEngine = .auto
    @Option(
        help: ArgumentHelp(
            "Where disk overlays are put while the checkpoint is taken; beside each disk's image if not given.", valueName: "folder"),
        completion: .directory)
    var overlays: String?
    @Flag(help: "Don't let QEMU count which disk blocks change from here on; the next checkpoint then reads all of each disk.")
    var noDiskTracking = false
    @Option(help: ArgumentHelp("A label; may be repeated.", valueName: "key=value"), transform: { try LabelArgument(parsing: $0) })
    var label: [LabelArgument] = []
    @OptionGroup var point: PointOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if latest, parent != nil { throw ValidationError("--latest and --parent both name the parent: give one of them.") }
        if name.isEmpty { throw ValidationError("The checkpoint needs a name.") }
    }

    func run() throws {
        Interruption.begin()
        let store = try target.open(.readWrite)
        defer { store.close() }
        let labels = Dictionary(label.map { ($0.key, $0.value) }) { _, last in last }
        let data = StoreBackedDataStore(store, options: WriterOptions(parallelism: jobs.value, labels: labels, references: point.point))
        let parentName = latest ? try data.latest() : parent
        let request = CheckpointRequest(
            name: name, parent: parentName, engine: engine, monitorPath: qmp, overlayFolder: overlays,
            tracksDisks: !noDiskTracking, guardCommand: ["/proc/self/exe", "vm", VMGuard.commandName], parallelism: jobs.value)
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let checkpointer = QEMUCheckpointer(request, store: data) { Self.show($0, progress) }
        Interruption.setCancel { checkpointer.cancel() }
        let report: CheckpointReport
        do {
            defer { progress.clear() }
            report = try checkpointer.run()
        }
        let result = VMCheckpointResult(name: name, parent: parentName, report)
        try output.report(result, summary: result.summary)
    }

    private static func show(_ state: CheckpointProgress, _ progress: Progress) {
        switch state.phase {
        case .preparing: progress.begin("preparing")
        case .resumed(let stop): progress.begin("guest stopped \(milliseconds(stop)), memory")
        case .memory: progress.update(state.done)
        case .disks:
            if state.done == .zero { progress.begin("disks") }
            progress.update(state.done)
        case .finishing: progress.begin("finishing")
        }
    }
}

extension CaptureEngine: ExpressibleByArgument {}

/// Microseconds, for people.
func milliseconds(_ microseconds: Int64) -> String { "\(oneDecimal(Double(microseconds) / 1000)) ms" }

/// What a checkpoint came to.
private struct VMCheckpointResult: Encodable {
    struct Disk: Encodable {
        var name: String
        var byteLength: UInt64
        /// Bytes read from the machine's disk: all that it holds, or what changed since the parent.
        var bytesRead: UInt64
        var isIncremental: Bool

        var summary: String {
            "\(name) \(readable(ByteCount(byteLength))), \(readable(ByteCount(bytesRead))) read\(isIncremental ? " (changes only)" : "")"
        }
    }
    var checkpoint: String
    var parent: String?
    var engine: String
    var machineType: String
    var stopMicroseconds: Int64
    /// Other stops, for the disks' sake: while direct I/O was drained, and while the guest went back to its images.
    var otherStopsMicroseconds: Int64
    var totalMicroseconds: Int64
    var migrationMicroseconds: Int64
    var pages: UInt64
    var newPages: UInt64
    var storedBytes: UInt64
    var memoryBytes: UInt64
    var deviceStateBytes: UInt64
    var disks: [Disk]

    init(name: String, parent: String?, _ report: CheckpointReport) {
        checkpoint = name
        self.parent = parent
        engine = report.machine.engine.rawValue
        machineType = report.machine.machineType
        stopMicroseconds = report.stopMicroseconds
        otherStopsMicroseconds = report.otherStopsMicroseconds
        totalMicroseconds = report.totalMicroseconds
        migrationMicroseconds = report.migrationMicroseconds
        pages = report.pages.rawValue
        newPages = report.newPages.rawValue
        storedBytes = report.storedBytes.rawValue
        memoryBytes = report.machine.memoryBlocks.reduce(0) { $0 + $1.byteLength }
        deviceStateBytes = report.machine.deviceStateBytes
        disks = zip(report.machine.disks, report.disks).map { disk, read in
            Disk(
                name: disk.name, byteLength: disk.byteLength, bytesRead: read.bytesRead.rawValue, isIncremental: read.isIncremental)
        }
    }

    var summary: String {
        let rate = Double(memoryBytes) / (Double(totalMicroseconds) / 1e6)
        return """
            checkpoint \(checkpoint) of \(machineType) by the \(engine) engine, in \(milliseconds(totalMicroseconds)) \
            (\(readable(bytes: rate))/s)
              stop:   \(milliseconds(stopMicroseconds))\(otherStopsMicroseconds > 0 ? ", and \(milliseconds(otherStopsMicroseconds)) for its disks" : "")
              memory: \(readable(ByteCount(memoryBytes))), \(pages) pages looked at
              disks:  \(disks.isEmpty ? "none" : disks.map(\.summary).joined(separator: ", "))
              stored: \(newPages) new pages, \(readable(ByteCount(storedBytes)))

            """
    }
}
