// `ckstore list`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the checkpoints of a store, as a tree.",
        discussion: """
            Each checkpoint stands below the one that it was saved over; branches are moved in. A dot is a deleted \
            checkpoint that still joins branches. NAMES are names that move, such as `latest`. LOGICAL is what the regions \
            take unpacked; STORED is what the checkpoint itself added to the store.

            Checkpoints that have been received in part are left out; --all shows them too (see `ckstore receive --status`).

            Example:
              ckstore list vm.ck
              ckstore list vm.ck --flat --limit 10
              ckstore list vm.ck --label reason=upgrade
              ckstore list vm.ck --json
            """)

    @OptionGroup var target: StoreArgument
    @Flag(help: "Show checkpoints too that have been received in part.")
    var all = false
    @Flag(help: "A plain list, the oldest first, with parents and times.")
    var flat = false
    @Option(
        help: ArgumentHelp("Only checkpoints that have this label; may be repeated: they must have all.", valueName: "key[=value]"),
        transform: { try LabelFilter(parsing: $0) })
    var label: [LabelFilter] = []
    @Option(help: ArgumentHelp("Only the newest n.", valueName: "n"))
    var limit: Int?
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func validate() throws {
        if let limit, limit < 1 { throw ValidationError("--limit is \(limit); it must be 1 or more.") }
    }

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let listing = try Listing(try store.snapshot(), includesPartial: all)
        let matching = listing.checkpoints.filter { info in label.allSatisfy { $0.matches(info) } }
        let shown = Array(matching.suffix(limit ?? matching.count))
        if output.json { return try StandardOutput.write(json: listing.result(shown, medium: store.medium.name)) }
        try StandardOutput.write(flat ? listing.flatText(shown) : listing.treeText(shown))
    }
}

/// What a store holds, ready to be listed.
private struct Listing {
    let checkpoints: [CheckpointInfo]
    private let generation: Generation
    private let names: [CheckpointID: String]
    /// The parents in the lineage of all its members, deleted ones included; what checkpoints say where a store keeps no lineage.
    private let parents: [CheckpointID: CheckpointID?]
    private let deleted: [CheckpointID]
    private let references: [CheckpointID: [String]]

    init(_ snapshot: Snapshot, includesPartial: Bool) throws(StoreError) {
        generation = snapshot.generation
        let all = try snapshot.checkpoints(includesPartial: includesPartial)
        checkpoints = all
        names = Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0.name) })
        let lineage = try snapshot.lineage()
        parents =
            lineage.isEmpty
            ? Dictionary(uniqueKeysWithValues: all.map { ($0.id, $0.parent) }) : lineage.mapValues(\.parent)
        deleted = lineage.filter(\.value.isDeleted).map(\.key).sorted()
        references = try snapshot.namesByCheckpoint()
    }

    func treeText(_ shown: [CheckpointInfo]) -> String {
        var table = Table(columns: [
            ("NAME", .left), ("AGE", .right), ("LOGICAL", .right), ("STORED", .right), ("NAMES", .left), ("LABELS", .left),
        ])
        let now = wallClockNanoseconds()
        table.rows = CheckpointTree(shown, parents: parents).lines().map { line in
            guard let info = line.checkpoint else { return [line.lead + "·", "", "", "", "", ""] }
            return [
                line.lead + printable(info.name), age(of: info.createdNanoseconds, now: now), readable(info.logicalBytes),
                readable(info.storedBytes), readableNames(references[info.id]), readableLabels(info),
            ]
        }
        return table.text
    }

    func flatText(_ shown: [CheckpointInfo]) -> String {
        var table = Table(columns: [
            ("NAME", .left), ("CREATED", .left), ("PARENT", .left), ("REGIONS", .right), ("LOGICAL", .right),
            ("STORED", .right), ("NAMES", .left), ("LABELS", .left),
        ])
        table.rows = shown.map { info in
            [
                printable(info.name), timestamp(nanoseconds: info.createdNanoseconds, isExact: false),
                printable(readableParent(info, name: info.parent.flatMap { names[$0] })), "\(info.regions.count)",
                readable(info.logicalBytes), readable(info.storedBytes), readableNames(references[info.id]), readableLabels(info),
            ]
        }
        return table.text
    }

    func result(_ shown: [CheckpointInfo], medium: String) -> Result {
        let objects = shown.map { info in
            var object = CheckpointObject(info, parentName: info.parent.flatMap { names[$0] })
            object.lineageParentID = parents[info.id].flatMap { $0 }?.description
            object.references = references[info.id] ?? []
            return object
        }
        return Result(
            medium: medium, generation: generation.rawValue, checkpoints: objects,
            deletedMembers: deleted.map { DeletedMember(id: $0.description, lineageParentID: parents[$0].flatMap { $0 }?.description) })
    }

    struct Result: Encodable {
        var medium: String
        var generation: UInt64
        var checkpoints: [CheckpointObject]
        /// Deleted checkpoints that still join branches of the lineage.
        var deletedMembers: [DeletedMember]
    }

    struct DeletedMember: Encodable {
        var id: String
        var lineageParentID: String?
    }
}

extension Snapshot {
    /// The moving names that lead to each checkpoint.
    func namesByCheckpoint() throws(StoreError) -> [CheckpointID: [String]] {
        var names: [CheckpointID: [String]] = [:]
        for reference in try references() { names[reference.checkpoint, default: []].append(reference.name) }
        return names
    }
}

/// Moving names for people.
private func readableNames(_ names: [String]?) -> String { (names ?? []).map(printable).joined(separator: ", ") }

/// Labels for people: "a=1, b=2".
func readableLabels(_ info: CheckpointInfo) -> String {
    info.labels.map { printable("\($0.key)=\($0.value)") }.joined(separator: ", ")
}

/// How long ago, for people: "3 d", "2 h"; what is still to come is "0 s".
func age(of nanoseconds: UInt64, now: UInt64) -> String {
    let seconds = now > nanoseconds ? (now - nanoseconds) / 1_000_000_000 : 0
    for (unit, length) in [("d", UInt64(86_400)), ("h", 3600), ("min", 60)] where seconds >= length { return "\(seconds / length) \(unit)" }
    return "\(seconds) s"
}
