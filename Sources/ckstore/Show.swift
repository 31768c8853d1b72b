// `ckstore show`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Show: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show one checkpoint with its regions.",
        discussion: """
            Example:
              ckstore show vm.ck monday
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name of the checkpoint.")
    var name: String
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let snapshot = try store.snapshot()
        let info = try snapshot.checkpoint(named: name)
        let parentName = try snapshot.parentName(of: info)
        let object = CheckpointObject(info, parentName: parentName)
        if output.json { return try StandardOutput.write(json: object) }
        var lines = [
            ("name", printable(info.name)), ("id", info.id.description), ("created", object.createdAt),
            ("generation", info.generation.description),
            ("parent", printable(readableParent(info, name: parentName)) + (info.parent.map { " \($0)" } ?? "")),
            ("logical", readable(info.logicalBytes)), ("stored", readable(info.storedBytes)),
            ("labels", info.labels.isEmpty ? "-" : readableLabels(info)),
        ]
        if let group = object.groupID { lines.append(("group", group)) }
        var table = Table(columns: [
            ("REGION", .left), ("KIND", .left), ("BYTES", .right), ("PAGES", .right), ("NEW", .right), ("UNCHANGED", .right),
            ("ZERO", .right),
        ])
        table.rows = object.regions.map { region in
            [
                printable(region.name), region.kind, "\(region.lengthBytes)", "\(region.totalPages)", "\(region.newPages)",
                "\(region.unchangedPages)", "\(region.zeroPages)",
            ]
        }
        try StandardOutput.write(listing(lines.map { (name: $0.0, value: $0.1) }) + "\n" + table.text)
    }
}
