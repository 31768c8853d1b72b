// `ckstore list`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct List: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "List the checkpoints of a store, the oldest first.",
        discussion: """
            Checkpoints that have been received in part are left out; --all shows them too (see `ckstore receive --status`).

            LOGICAL is what the regions take unpacked; STORED is what the checkpoint itself added to the store.

            Example:
              ckstore list vm.ck
              ckstore list vm.ck --json
            """)

    @OptionGroup var target: StoreArgument
    @Flag(help: "Show checkpoints too that have been received in part.")
    var all = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let snapshot = try store.snapshot()
        let checkpoints = try snapshot.checkpoints(includesPartial: all)
        let names = Dictionary(uniqueKeysWithValues: checkpoints.map { ($0.id, $0.name) })
        if output.json {
            let objects = checkpoints.map { info in CheckpointObject(info, parentName: info.parent.flatMap { names[$0] }) }
            let result = Result(medium: store.medium.name, generation: snapshot.generation.rawValue, checkpoints: objects)
            return try StandardOutput.write(json: result)
        }
        var table = Table(columns: [
            ("NAME", .left), ("CREATED", .left), ("PARENT", .left), ("REGIONS", .right), ("LOGICAL", .right),
            ("STORED", .right), ("LABELS", .left),
        ])
        for info in checkpoints {
            table.rows.append([
                printable(info.name), timestamp(nanoseconds: info.createdNanoseconds, isExact: false),
                printable(readableParent(info, name: info.parent.flatMap { names[$0] })), "\(info.regions.count)",
                readable(info.logicalBytes), readable(info.storedBytes), readableLabels(info),
            ])
        }
        try StandardOutput.write(table.text)
    }

    private struct Result: Encodable {
        var medium: String
        var generation: UInt64
        var checkpoints: [CheckpointObject]
    }
}

/// Labels for people: "a=1, b=2".
func readableLabels(_ info: CheckpointInfo) -> String {
    info.labels.map { printable("\($0.key)=\($0.value)") }.joined(separator: ", ")
}
