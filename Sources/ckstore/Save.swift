// `ckstore save`.
//
// Invariant: the checkpoint is there, whole, when the command has said so, and not there at all otherwise.

import ArgumentParser
import CheckpointStore
import Media
import StoreFormat
import Units

struct Save: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Save files as a checkpoint.",
        discussion: """
            Each --memory, --disk and --state names a region and the file with its content; '-' is standard input. \
            Sparse files are read by their extents. The length of memory must be a multiple of 4096 bytes.

            With --parent only pages that differ from the parent's region of the same name take space. The checkpoint has \
            just the regions that are named; with --inherit it also has the parent's others, as they are there.

            Interrupted or failed, a save leaves nothing in the store.

            Example:
              ckstore save vm.ck mon --memory ram=guest.mem --state devices=vm.state
              ckstore save vm.ck tue --parent mon --inherit --memory ram=guest.mem
              ckstore save vm.ck wed --parent latest --memory ram=guest.mem --point stable
              zcat hd.img.gz | ckstore save vm.ck disk1 --disk vda=- --label from=gz
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the new checkpoint.")
    var name: String
    @Option(
        help: ArgumentHelp("A region of memory and the file with it.", valueName: "region=file"), completion: .file(),
        transform: { try RegionFile(parsing: $0) })
    var memory: [RegionFile] = []
    @Option(
        help: ArgumentHelp("A disk and the file or device with its content.", valueName: "region=file"), completion: .file(),
        transform: { try RegionFile(parsing: $0) })
    var disk: [RegionFile] = []
    @Option(
        help: ArgumentHelp("State of devices, and the file with it.", valueName: "region=file"), completion: .file(),
        transform: { try RegionFile(parsing: $0) })
    var state: [RegionFile] = []
    @Option(help: ArgumentHelp("The checkpoint to store the differences from.", valueName: "name"))
    var parent: String?
    @Flag(help: "Take over the parent's regions that are not named.")
    var inherit = false
    @Option(help: ArgumentHelp("A label; may be repeated.", valueName: "key=value"), transform: { try LabelArgument(parsing: $0) })
    var label: [LabelArgument] = []
    @OptionGroup var point: PointOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if inherit, parent == nil { throw ValidationError("--inherit needs --parent: whose regions?") }
        if memory.isEmpty, disk.isEmpty, state.isEmpty, !inherit {
            throw ValidationError("There is nothing to save. Name a region and its file, for example --memory ram=guest.mem.")
        }
        try RegionFile.checkUnique(memory + disk + state)
        var keys = Set<String>()
        for label in label where !keys.insert(label.key).inserted {
            throw ValidationError("The label '\(label.key)' is given twice.")
        }
    }

    func run() throws {
        Interruption.begin()
        let inputs = try openInputs()
        let store = try target.open(.readWrite)
        defer { store.close() }
        let lengths = inputs.map(\.byteLength)
        let total = lengths.contains { $0 == nil } ? nil : lengths.lazy.map { $0 ?? .zero }.saturatingSum
        let progress = Progress(isShown: output.showsProgress, total: total)
        let info = try save(inputs, store, progress)
        let parentName = try store.snapshot().parentName(of: info)
        let result = SaveResult(info, parentName: parentName, elapsedSeconds: progress.elapsedSeconds)
        try output.report(result, summary: result.summary)
    }

    private func openInputs() throws(StoreError) -> [InputFile] {
        var inputs: [InputFile] = []
        for (kind, files) in [(RegionKind.memory, memory), (.disk, disk), (.state, state)] {
            for file in files { inputs.append(try InputFile(file, kind: kind)) }
        }
        return inputs
    }

    private func save(
        _ inputs: [InputFile], _ store: CheckpointStore, _ progress: Progress
    ) throws(StoreError) -> CheckpointInfo {
        defer { progress.clear() }
        let labels = Dictionary(uniqueKeysWithValues: label.map { ($0.key, $0.value) })
        let options = WriterOptions(parallelism: jobs.value, labels: labels, references: point.point) { done in progress.update(done.bytes) }
        let writer = try store.begin(name, parent: parent, options: options)
        defer { writer.abort() }
        Interruption.setCancel { writer.cancel() }
        for input in inputs {
            progress.begin(input.region)
            try input.save(to: writer)
        }
        if inherit, let parent { try takeOver(parent, besides: inputs.map(\.region), store, writer) }
        return try writer.commit()
    }

    private func takeOver(
        _ parent: String, besides named: [String], _ store: CheckpointStore, _ writer: CheckpointWriter
    ) throws(StoreError) {
        for region in try store.snapshot().checkpoint(named: parent).regions where !named.contains(region.name) {
            try writer.inheritRegion(region.name)
        }
    }
}

/// What a save did.
private struct SaveResult: Encodable {
    var checkpoint: CheckpointObject
    var newPages: UInt64
    var zeroPages: UInt64
    var unchangedPages: UInt64
    var totalPages: UInt64
    var logicalBytes: UInt64
    var storedBytes: UInt64
    var elapsedSeconds: Double
    var logicalBytesPerSecond: Double
    var storedBytesPerSecond: Double

    init(_ info: CheckpointInfo, parentName: String?, elapsedSeconds: Double) {
        checkpoint = CheckpointObject(info, parentName: parentName)
        newPages = checkpoint.regions.reduce(0) { $0 + $1.newPages }
        zeroPages = checkpoint.regions.reduce(0) { $0 + $1.zeroPages }
        unchangedPages = checkpoint.regions.reduce(0) { $0 + $1.unchangedPages }
        totalPages = checkpoint.regions.reduce(0) { $0 + $1.totalPages }
        logicalBytes = checkpoint.logicalBytes
        storedBytes = checkpoint.storedBytes
        self.elapsedSeconds = elapsedSeconds
        logicalBytesPerSecond = Double(logicalBytes) / elapsedSeconds
        storedBytesPerSecond = Double(storedBytes) / elapsedSeconds
    }

    var summary: String {
        """
        saved \(checkpoint.name): \(readable(ByteCount(logicalBytes))) in \(oneDecimal(elapsedSeconds)) s \
        (\(readable(bytes: logicalBytesPerSecond))/s)
          pages:  \(newPages) new, \(zeroPages) zero, \(unchangedPages) unchanged
          stored: \(readable(ByteCount(storedBytes))) (\(readable(bytes: storedBytesPerSecond))/s)

        """
    }
}
