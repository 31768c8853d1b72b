// `ckstore restore`.
//
// Invariant: a file has its final name only when it is complete.

import ArgumentParser
import CheckpointStore
import Glibc
import Media
import Units

struct Restore: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Write regions of a checkpoint to files.",
        discussion: """
            Every byte is verified before it is written. A file gets its name when it is complete; zero pages become holes. \
            '-' is standard output. Files that exist are replaced with --force only, and so are the contents of \
            block devices. New files are readable by their owner alone.

            Example:
              ckstore restore vm.ck monday --all restored/
              ckstore restore vm.ck monday --region vda=/dev/vg0/vda --force
              ckstore restore vm.ck monday --region vda=- | gzip > hd.img.gz
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @Option(
        help: ArgumentHelp("A region and the file to write it to; may be repeated.", valueName: "region=file"),
        completion: .file(), transform: { try RegionFile(parsing: $0) })
    var region: [RegionFile] = []
    @Option(help: ArgumentHelp("Write every region to a file of its name here.", valueName: "dir"), completion: .directory)
    var all: String?
    @Flag(help: "Replace files that exist, and overwrite block devices.")
    var force = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        guard region.isEmpty != (all == nil) else {
            throw ValidationError("Say what to restore: --all DIR, or --region REGION=FILE for each region.")
        }
        if let all, all.isEmpty { throw ValidationError("--all needs a directory.") }
        try RegionFile.checkUnique(region)
        if output.json, writesToStandardOutput {
            throw ValidationError("--json and '-' both want standard output.")
        }
    }

    private var writesToStandardOutput: Bool { region.contains(where: \.isStandard) }

    func run() throws {
        Interruption.begin()
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let reader = try store.snapshot().reader(named: name)
        let files = all.map { directory in
            reader.info.regions.map { RegionFile(region: $0.name, path: directory + "/" + $0.name) }
        }
        try checkDistinct(files ?? region)
        let regions = try (files ?? region).map { (file: $0, reader: try reader.region($0.region)) }
        let progress = Progress(
            isShown: output.showsProgress, total: regions.lazy.map(\.reader.info.byteLength).saturatingSum)
        let isNewDirectory = try makeDirectory()
        do { try restore(regions, progress) } catch {
            if isNewDirectory, let all { unsafe rmdir(all) }
            throw error
        }
        try report(regions, progress)
    }

    /// No two regions go to one file, and none to the store itself.
    private func checkDistinct(_ files: [RegionFile]) throws(StoreError) {
        var taken = target.store.kind == .ram ? [] : Set([FileIdentity(target.store.target)])
        for file in files where !file.isStandard && !taken.insert(FileIdentity(file.path)).inserted {
            throw StoreError(
                .invalidInput, "\(file.path) is the store, or the file of another region", remedy: "Choose another file.",
                checkpoint: name, region: file.region)
        }
    }

    /// True when it was not there before.
    private func makeDirectory() throws(StoreError) -> Bool {
        guard let all else { return false }
        if unsafe mkdir(all, 0o700) == 0 { return true }
        guard errno == EEXIST else { throw systemError("create", all) }
        return false
    }

    private func restore(_ regions: [(file: RegionFile, reader: RegionReader)], _ progress: Progress) throws {
        defer { progress.clear() }
        var targets: [any RestoreTarget] = []
        for (file, reader) in regions {
            targets.append(try RestoreTargets.make(file, length: reader.info.byteLength, force: force))
        }
        for (target, region) in zip(targets, regions) {
            progress.begin(region.file.region)
            try target.fill(from: region.reader, parallelism: jobs.value, progress: progress)
        }
        for target in targets { try target.publish() }
    }

    private func report(_ regions: [(file: RegionFile, reader: RegionReader)], _ progress: Progress) throws {
        guard !writesToStandardOutput else { return }
        let elapsed = progress.elapsedSeconds
        let bytes = regions.lazy.map(\.reader.info.byteLength).saturatingSum.rawValue
        let result = Result(
            checkpoint: name,
            regions: regions.map {
                Region(name: $0.file.region, path: $0.file.path, lengthBytes: $0.reader.info.byteLength.rawValue)
            }, logicalBytes: bytes, elapsedSeconds: elapsed, logicalBytesPerSecond: Double(bytes) / elapsed)
        try output.report(
            result,
            summary: "restored \(name): \(readable(ByteCount(bytes))) in \(oneDecimal(elapsed)) s "
                + "(\(readable(bytes: Double(bytes) / elapsed))/s)\n")
    }

    private struct Region: Encodable {
        var name: String
        var path: String
        var lengthBytes: UInt64
    }

    private struct Result: Encodable {
        var checkpoint: String
        var regions: [Region]
        var logicalBytes: UInt64
        var elapsedSeconds: Double
        var logicalBytesPerSecond: Double
    }
}
