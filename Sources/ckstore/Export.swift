// `ckstore export`.
//
// Invariant: a file has its final name only when it is complete.

import ArgumentParser
import CheckpointCore
import CheckpointStore
import Glibc
import Media
import QEMUEngine
import StoreFormat
import Units

struct Export: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Write a checkpoint in a form that other programs read.",
        discussion: """
            Formats:
              raw          a directory with a sparse raw file for each memory block, disk and other region
              elf          an ELF core of a virtual machine (x86_64): memory by guest-physical address, and the registers of its CPUs \
            as threads; gdb and crash read it. With --paging also the guest kernel's mappings, under their virtual addresses
              qemu-stream  a migration stream of a virtual machine, which `qemu-system-... -incoming` loads; the disks are not in it: \
            export them with --format raw, or use `ckstore vm restore`

            Every byte is verified before it is written. What exists is replaced with --force only. New files are readable by their owner \
            alone.

            Example:
              ckstore export vm.ck monday --format raw -o monday/
              ckstore export vm.ck monday --format elf -o monday.core && gdb -ex 'info registers' --core monday.core
              ckstore export vm.ck monday --format qemu-stream -o - | zstd > monday.stream.zst
              qemu-system-x86_64 -machine pc -m 512M -incoming 'exec:zstdcat monday.stream.zst'
            """)

    enum Format: String, ExpressibleByArgument, CaseIterable {
        case raw, elf, stream = "qemu-stream"
    }

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @Option(help: ArgumentHelp("What to write: raw, elf or qemu-stream.", valueName: "format"))
    var format: Format
    @Option(
        name: [.customShort("o"), .customLong("output")],
        help: ArgumentHelp(
            "The file to write; with raw, the directory. '-' is standard output (qemu-stream only).", valueName: "path"),
        completion: .file())
    var path: String
    @Flag(help: "Have the guest kernel's virtual addresses in an ELF core.")
    var paging = false
    @Flag(help: "Replace files that exist.")
    var force = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard !path.isEmpty, !path.utf8.contains(0) else { throw ValidationError("-o needs a file, or a directory for --format raw.") }
        if path == "-" {
            guard format == .stream else {
                throw ValidationError("Only --format qemu-stream can go to standard output; name a file or directory.")
            }
            if output.json { throw ValidationError("--json and '-' both want standard output.") }
        }
        if paging, format != .elf { throw ValidationError("--paging goes with --format elf.") }
    }

    func run() throws {
        Interruption.begin()
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        guard target.store.kind == .ram || FileIdentity(path) != FileIdentity(target.store.target) else {
            throw StoreError(.invalidInput, "\(path) is the store", remedy: "Choose another file.", checkpoint: name)
        }
        let result =
            switch format {
            case .raw: try exportRaw(try store.snapshot().reader(named: name))
            case .elf: try exportCore(try StoreBackedDataStore(store).source(name))
            case .stream: try exportStream(try StoreBackedDataStore(store).source(name))
            }
        guard path != "-" else { return }
        for note in result.notes where !output.json && !output.quiet { standardError("ckstore: \(note)\n") }
        let bytes = ByteCount(result.logicalBytes)
        try output.report(
            result,
            summary: "exported \(printable(name)) to \(printable(path)): \(readable(bytes)) in \(oneDecimal(result.elapsedSeconds)) s\n")
    }

    private func exportRaw(_ reader: CheckpointReader) throws -> Result {
        let regions = reader.info.regions
        let progress = Progress(isShown: output.showsProgress, total: regions.lazy.map(\.byteLength).saturatingSum)
        defer { progress.clear() }
        let files = regions.map { RegionFile(region: $0.name, path: path + "/" + Self.fileName($0)) }
        guard Set(files.map(\.path)).count == files.count else {
            throw StoreError(
                .invalidInput, "two regions would have the same file", remedy: "Use `ckstore restore` and name the files.",
                checkpoint: name)
        }
        let isNew = unsafe mkdir(path, 0o700) == 0
        guard isNew || errno == EEXIST else { throw systemError("create", path) }
        do {
            var targets: [any RestoreTarget] = []
            for (file, region) in zip(files, regions) {
                targets.append(try RestoreTargets.make(file, length: region.byteLength, force: force))
            }
            for (target, file) in zip(targets, files) {
                progress.begin(file.region)
                try target.fill(from: try reader.region(file.region), parallelism: jobs.value, progress: progress)
            }
            for target in targets { try target.publish() }
        } catch {
            if isNew { unsafe rmdir(path) }
            throw error
        }
        let total = regions.lazy.map(\.byteLength).saturatingSum.rawValue
        return Result(self, files: files.map { File(path: $0.path, region: $0.region) }, bytes: total, progress)
    }

    /// A name without a colon, which QEMU would take for the end of a protocol's name.
    private static func fileName(_ region: RegionInfo) -> String {
        let name = String(region.name.map { $0 == ":" ? "-" : $0 })
        if region.name == MachineRecord.regionName { return name + ".json" }
        return name + (region.kind == .memory || region.kind == .disk ? ".raw" : ".bin")
    }

    private func exportCore(_ source: any CheckpointSource) throws -> Result {
        let core = try CoreFile(source, paging: paging)
        let progress = Progress(isShown: output.showsProgress, total: core.memoryBytes)
        defer { progress.clear() }
        guard let file = try RestoreTargets.make(RegionFile(region: "", path: path), length: core.byteLength, force: force) as? FileTarget
        else {
            throw StoreError(.invalidInput, "\(path) is no regular file", remedy: "Name a file for the core.", checkpoint: name)
        }
        try file.fill(length: core.byteLength) { descriptor in
            unsafe try core.write(progress: { progress.update($0) }) { (bytes, offset) throws(EngineError) in
                let status = unsafe writeAll(descriptor, bytes, at: offset)
                if status != 0 { throw EngineError(systemError("write to", path, status)) }
            }
        }
        try file.publish()
        var result = Result(self, files: [File(path: path)], bytes: core.byteLength.rawValue, progress)
        (result.virtualCPUs, result.segmentCount) = (core.virtualCPUs, core.segmentCount)
        if core.hasAssumedAddresses {
            result.notes.append(
                "the checkpoint does not say where its memory was in the guest's address space: addresses count from the start of the "
                    + "largest memory block")
        }
        return result
    }

    private func exportStream(_ source: any CheckpointSource) throws -> Result {
        let export = try StreamExport(source)
        let progress = Progress(isShown: output.showsProgress, total: export.memoryBytes)
        defer { progress.clear() }
        let target = try RestoreTargets.make(RegionFile(region: "", path: path), length: .zero, force: force)
        var (length, status) = (ByteCount.zero, Int32(0))
        let write: (Int32) throws -> Void = { descriptor in
            length = unsafe try export.write(progress: { progress.update($0) }) { (bytes) throws(EngineError) in
                status = unsafe writeAll(descriptor, bytes)
                if status != 0 { throw EngineError(systemError("write to", path == "-" ? "standard output" : path, status)) }
            }
        }
        do {
            switch target {
            case let file as FileTarget: try file.fill(write)
            case let stream as StreamTarget: try stream.fill(write)
            default: throw StoreError(.invalidInput, "\(path) is a block device", remedy: "Name a file or a pipe.", checkpoint: name)
            }
        } catch { throw status == EPIPE ? BrokenPipe() : error }
        try target.publish()
        var result = Result(self, files: [File(path: path)], bytes: length.rawValue, progress)
        (result.machineType, result.virtualCPUs) = (export.record.machineType, export.record.virtualCPUs)
        if !export.record.disks.isEmpty {
            result.notes.append(
                "the stream goes with the disks of the same checkpoint: \(export.record.disks.map(\.name).joined(separator: ", "))")
        }
        return result
    }

    private struct File: Encodable {
        var path: String
        var region: String?
    }

    private struct Result: Encodable {
        var checkpoint: String
        var format: String
        var files: [File]
        /// The files' lengths, holes included.
        var logicalBytes: UInt64
        var elapsedSeconds: Double
        var machineType: String?
        var virtualCPUs: Int?
        var segmentCount: Int?
        /// What the reader ought to know.
        var notes: [String] = []

        init(_ command: Export, files: [File], bytes: UInt64, _ progress: Progress) {
            checkpoint = command.name
            format = command.format.rawValue
            self.files = files
            logicalBytes = bytes
            elapsedSeconds = progress.elapsedSeconds
        }
    }
}
