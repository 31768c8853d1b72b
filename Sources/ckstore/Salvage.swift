// `ckstore salvage`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct SalvageCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "salvage",
        abstract: "Bring back what can be read of a store that can't be opened any more.",
        discussion: """
            For stores whose superblock, catalog, segment table or index are gone, or that are cut off. Looks through the whole \
            medium, reading only, and copies what checksums vouch for into another store: checkpoints that are whole as they were; \
            others without the pages that are lost, which are named here and zero there, with the label ckstore.salvaged (partial: \
            pages are missing; index: the record was gone; runs: only pages that the checkpoint stored itself). Regions whose name \
            nobody knows are called region-KEY. Where slots or catalog are damaged, checkpoints that had been deleted may come back.

            The new store is made if it is not there, as large as the old one. Exits with 3 when anything could not be brought back.

            Example:
              ckstore salvage broken.ck --into new.ck
              ckstore salvage raw:/dev/sdb1 --dry-run --json
            """)

    @OptionGroup var source: StoreArgument
    @Option(
        help: ArgumentHelp("The store to bring it into; made if it is not there.", valueName: "store"), completion: .file(),
        transform: { text in try Locator(text) })
    var into: Locator?
    @Option(
        help: ArgumentHelp("How large to make the new store (default: as the old one).", valueName: "size"), transform: { try Size(parsing: $0) })
    var size: Size?
    @Flag(help: "Read everything and report, but write nothing.")
    var dryRun = false
    @Flag(help: "Also bring back pages of checkpoints that may never have been committed.")
    var uncommitted = false
    @OptionGroup var jobs: JobsOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if dryRun == (into != nil) { throw ValidationError("Say where to: --into STORE, or --dry-run to look only.") }
        if dryRun, size != nil { throw ValidationError("--size is for the store that --into makes: --dry-run makes none.") }
    }

    func run() throws {
        let medium = try openMedium(source.store, access: .readOnly)
        let (name, mediumSize) = (medium.name, medium.size)
        let progress = Progress(isShown: output.showsProgress, total: nil)
        let options = SalvageOptions(parallelism: jobs.value, includesUnproven: uncommitted) { step in
            progress.expect(step.total)
            progress.update(step.done)
        }
        let report: SalvageReport
        do {
            defer { progress.clear() }
            progress.begin("scanning")
            let salvage = try Salvage(medium, options: options)
            let target = try into.map { try openTarget($0, salvage, size: size?.bytes, default: mediumSize) }
            defer { target?.close() }
            progress.begin("copying")
            report = salvage.run(into: target)
        }
        let result = SalvageObject(report, medium: name, into: into?.description)
        if !output.json {
            standardError(report.lossText)
            if let obstacle = report.obstacle { standardError("ckstore: \(obstacle)\n") }
        }
        try output.report(result, summary: report.summary(medium: name, isDry: dryRun))
        if let obstacle = report.obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
        if !report.isWhole { throw ExitCode(ExitStatus.corrupt) }
    }

    /// Opens the store that is there, or makes one. Never the damaged one: that would be written over.
    private func openTarget(_ locator: Locator, _ salvage: Salvage, size: ByteCount?, default defaultSize: ByteCount) throws -> CheckpointStore {
        do {
            let medium = try openMedium(locator, access: .readWrite)
            guard size == nil else {
                medium.close()
                throw StoreError(
                    .exists, "it is there already, so it can't be made with that size", remedy: "Leave out --size, or name a new store.",
                    medium: locator.description)
            }
            let store = try CheckpointStore.open(medium)
            guard store.uuid != salvage.uuid else {
                store.close()
                throw StoreError(
                    .invalidInput, "that is the damaged store itself, or a copy of it", remedy: "Choose another store.", medium: locator.description)
            }
            return store
        } catch let error as MediumError {
            guard error.code == .notFound else { throw error }
        }
        let medium = try createMedium(locator, size: size ?? defaultSize)
        do {
            return try CheckpointStore.create(on: medium, options: CreateOptions(segmentSize: salvage.segmentSize))
        } catch {
            medium.close()
            try? removeMedium(locator)
            throw error
        }
    }
}

/// What salvage did, as JSON.
private struct SalvageObject: Encodable {
    struct Region: Encodable {
        var name: String
        var isNameKnown: Bool
        var kind: String
        var lengthBytes: UInt64
        var readPages: UInt64
        var lostPages: [PageRangeObject]
        /// True: nothing is known of the other pages; false: they are zero.
        var hasUnknownPages: Bool
    }

    struct Checkpoint: Encodable {
        var id: String
        var oldName: String?
        /// Absent: nothing of it could be read.
        var name: String?
        var parentName: String?
        var state: String
        var regions: [Region]
    }

    var medium: String
    var into: String?
    var uuid: String
    var segmentBytes: UInt64
    var segmentCount: UInt32
    /// Absent: no superblock slot is left.
    var slotGeneration: UInt64?
    var isWhole: Bool
    var isCatalogWhole: Bool
    var scannedSegments: Int
    var foreignSegments: Int
    var unreadableBytes: UInt64
    var checksPageHashes: Bool
    var unprovenCheckpoints: Int
    /// Checkpoints that were still being received: left out.
    var partialCheckpoints: Int
    /// What ended the work before its end.
    var obstacle: FailureObject?
    var checkpoints: [Checkpoint]

    init(_ report: SalvageReport, medium: String, into: String?) {
        self.medium = medium
        self.into = into
        uuid = report.uuid.description
        segmentBytes = report.segmentSize.rawValue
        segmentCount = report.segmentCount
        slotGeneration = report.slotGeneration?.rawValue
        isWhole = report.isWhole
        isCatalogWhole = report.isCatalogWhole
        scannedSegments = report.scannedSegments
        foreignSegments = report.foreignSegments
        unreadableBytes = report.unreadableBytes.rawValue
        checksPageHashes = report.checksPageHashes
        unprovenCheckpoints = report.unprovenCheckpoints
        partialCheckpoints = report.partialCheckpoints
        obstacle = report.obstacle.map(FailureObject.init)
        checkpoints = report.checkpoints.map { one in
            Checkpoint(
                id: one.id.description, oldName: one.oldName, name: one.name, parentName: one.parent, state: one.state.rawValue,
                regions: one.regions.map { region in
                    Region(
                        name: region.name, isNameKnown: region.isNameKnown, kind: region.kind.name, lengthBytes: region.byteLength.rawValue,
                        readPages: region.readPages.rawValue, lostPages: region.lost.ranges.map(PageRangeObject.init),
                        hasUnknownPages: region.hasUnknownPages)
                })
        }
    }
}

extension SalvageReport {
    /// How many entries of a list people get to see.
    private static let shown = 20

    fileprivate func summary(medium: String, isDry: Bool) -> String {
        let counts = SalvageState.allCases.map { state in (state, checkpoints.count { $0.state == state }) }.filter { $0.1 > 0 }
        let list = counts.map { "\($0.1) \($0.0.rawValue)" }.joined(separator: ", ")
        return "\(medium): \(isDry ? "would bring" : "brought") back \(counted(checkpoints.count, "checkpoint")): \(list.isEmpty ? "none" : list)\n"
    }

    /// What could not be brought back, for people.
    fileprivate var lossText: String {
        var text = ""
        if !isCatalogWhole { text += "ckstore: slots or catalog are damaged: what follows may not be all, and may have been deleted before\n" }
        if !checksPageHashes { text += "ckstore: without slots, pages are covered by the checksums of their runs alone\n" }
        if unprovenCheckpoints > 0 {
            text += "ckstore: left out, perhaps never committed: \(counted(unprovenCheckpoints, "checkpoint")) (--uncommitted takes them too)\n"
        }
        if partialCheckpoints > 0 {
            text += "ckstore: left out, since they had come in part only: \(counted(partialCheckpoints, "checkpoint")) (send them again)\n"
        }
        let hurt = checkpoints.filter { $0.state != .whole }
        for one in hurt.prefix(Self.shown) { text += line(one) }
        return text + (hurt.count > Self.shown ? "and \(hurt.count - Self.shown) more (--json lists all)\n" : "")
    }

    private func line(_ one: SalvagedCheckpoint) -> String {
        let name = printable(one.oldName ?? one.id.description)
        guard let new = one.name else { return "checkpoint \(name): nothing of it could be read\n" }
        var text = "checkpoint \(name): \(one.state.rawValue)" + (one.oldName == one.name ? "" : ", now \(printable(new))") + "\n"
        for region in one.regions where !region.lost.isEmpty || region.hasUnknownPages {
            let ranges = region.lost.ranges.prefix(3).map { "\($0.lowerBound)..<\($0.upperBound)" }.joined(separator: ", ")
            let more = region.lost.ranges.count > 3 ? " and \(region.lost.ranges.count - 3) more ranges" : ""
            text += "  region \(printable(region.name)): \(region.readPages) pages are there"
            if !region.lost.isEmpty { text += ", \(region.lost.count) are lost: \(ranges)\(more)" }
            text += region.hasUnknownPages ? ", of others nothing is known\n" : "\n"
        }
        return text
    }
}
