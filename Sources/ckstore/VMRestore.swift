// `ckstore vm restore`.
//
// Invariants:
// - Nothing is written and nothing started before all that can be judged has been judged.
// - Disks are complete and durable before QEMU starts.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Glibc
import Media
import QEMUEngine
import QMP
import Units

struct VMRestore: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "restore",
        abstract: "Bring a virtual machine back: start QEMU and load a checkpoint into it.",
        discussion: """
            The command behind -- starts QEMU as the checkpointed machine was started; what makes it load the checkpoint is added to it. \
            A command that makes another machine is refused. The command stays until QEMU ends, passes signals on to it, and exits as it does.

            With --lazy the machine runs at once and gets each page when it needs it, and the others meanwhile. If this command is killed before \
            all have arrived, the machine waits: `ckstore vm resume` goes on.

            Each disk of the checkpoint is recreated as a raw image, a file or block device; give it to QEMU as format=raw.

            Example:
              ckstore vm restore vm.ck monday --disk vda=hd.img -- \\
                qemu-system-x86_64 -machine pc -m 512M -drive if=none,id=d,file=hd.img,format=raw \\
                  -device virtio-blk-pci,id=vda,drive=d
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @Flag(help: "Let the machine run before its memory has been read.")
    var lazy = false
    @Option(
        help: ArgumentHelp("A disk and the file or block device to write it to; may be repeated.", valueName: "disk=path"),
        completion: .file(), transform: { try RegionFile(parsing: $0) })
    var disk: [RegionFile] = []
    @Flag(help: "Write no disks: their images are as they were at the checkpoint.")
    var noDisks = false
    @Flag(help: "Replace files that exist, and overwrite block devices.")
    var force = false
    @OptionGroup var output: OutputOptions
    @Argument(parsing: .postTerminator, help: "The command that starts QEMU.")
    var command: [String] = []

    func validate() throws {
        guard !command.isEmpty else {
            throw ValidationError("Write the command that starts QEMU behind --, for example: -- qemu-system-x86_64 -machine pc -m 512M")
        }
        try RegionFile.checkUnique(disk)
        if disk.contains(where: \.isStandard) { throw ValidationError("A disk can't be written to '-': QEMU has to open it.") }
        if noDisks, !disk.isEmpty { throw ValidationError("--no-disks and --disk contradict each other.") }
    }

    func run() throws {
        let report = RestoreReport(name, isLazy: lazy, output)
        Interruption.begin()
        let store = try target.open(.readOnly)
        defer { store.close() }
        let source = try StoreBackedDataStore(store).source(name)
        let restore = try QEMURestore(source, command: try QEMUCommandLine(command), isLazy: lazy) { report.take($0) }
        let disks = try places(of: try source.machineRecord().disks)
        let created = disks.map(\.file.path).filter { unsafe access($0, F_OK) != 0 }
        try write(disks, from: try store.snapshot().reader(named: name))
        Interruption.setReceiver { restore.signal($0) }
        let status: ChildProcess.Status
        do { status = try restore.run() } catch {
            // No QEMU runs then: what was made for it goes, so that the next try can make it.
            for path in created { unsafe unlink(path) }
            throw error
        }
        report.clear()
        switch status {
        case .exited(0): return
        case .exited(let code): throw ExitCode(code)
        case .killed(let signal): throw ExitCode(128 + signal)
        }
    }

    // MARK: disks

    /// Where each disk goes; none with --no-disks.
    private func places(of disks: [MachineRecord.Disk]) throws -> [(disk: MachineRecord.Disk, file: RegionFile)] {
        if noDisks { return [] }
        let names = Set(disks.map(\.name))
        if let unknown = disk.first(where: { !names.contains($0.region) }) {
            throw EngineError(
                .invalidInput, "the checkpoint has no disk \(unknown.region)",
                remedy: names.isEmpty ? "It has no disks." : "It has: \(disks.map(\.name).joined(separator: ", ")).")
        }
        let given = Dictionary(uniqueKeysWithValues: disk.map { ($0.region, $0.path) })
        let missing = disks.filter { given[$0.name] == nil }
        guard missing.isEmpty else {
            let options = missing.map { "--disk \($0.name)=FILE" }.joined(separator: " ")
            throw EngineError(
                .invalidInput, "the checkpoint has disks for which no place is given: \(missing.map(\.name).joined(separator: ", "))",
                remedy: "Add \(options), or --no-disks when their images are as they were at the checkpoint.")
        }
        var taken = target.store.kind == .ram ? [] : Set([FileIdentity(target.store.target)])
        return try disks.map { disk in
            let path = given[disk.name] ?? ""
            guard taken.insert(FileIdentity(path)).inserted else {
                throw EngineError(.invalidInput, "\(path) is the store, or another disk's", remedy: "Choose another file.", place: disk.name)
            }
            return (disk, RegionFile(region: disk.region, path: path))
        }
    }

    private func write(_ disks: [(disk: MachineRecord.Disk, file: RegionFile)], from reader: CheckpointReader) throws {
        let progress = Progress(
            isShown: output.showsProgress, total: ByteCount(disks.reduce(0) { $0 + $1.disk.byteLength }))
        defer { progress.clear() }
        var targets: [any RestoreTarget] = []
        for (disk, file) in disks { targets.append(try RestoreTargets.make(file, length: ByteCount(disk.byteLength), force: force)) }
        for (target, (disk, file)) in zip(targets, disks) {
            progress.begin(disk.name)
            try target.fill(from: try reader.region(file.region), parallelism: WriterOptions.defaultParallelism, progress: progress)
        }
        for target in targets { try target.publish() }
    }
}
