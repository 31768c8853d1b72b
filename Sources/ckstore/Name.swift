// `ckstore name`: names that move.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Name: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "name",
        abstract: "Names that move: list them, point them at checkpoints, remove them.",
        discussion: """
            A moving name can be given wherever a checkpoint is asked for. `latest` is moved by every save to the new \
            checkpoint; others stay where you point them, here or with `save --point`, and keep their checkpoint from being \
            deleted or pruned.

            Example:
              ckstore name list vm.ck
              ckstore name set vm.ck stable tuesday
              ckstore name remove vm.ck stable
            """,
        subcommands: [NameList.self, NameSet.self, NameRemove.self])
}

struct NameList: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "list", abstract: "List the names that move and where they lead.",
        discussion: """
            Example:
              ckstore name list vm.ck
            """)

    @OptionGroup var target: StoreArgument
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readOnly, generation: generation.value)
        defer { store.close() }
        let snapshot = try store.snapshot()
        var objects: [NameObject] = []
        for reference in try snapshot.references() {
            objects.append(NameObject(reference.name, try snapshot.checkpoint(reference.checkpoint)))
        }
        if output.json { return try StandardOutput.write(json: Result(names: objects)) }
        var table = Table(columns: [("NAME", .left), ("CHECKPOINT", .left)])
        table.rows = objects.map { [printable($0.name), printable($0.checkpoint)] }
        try StandardOutput.write(table.text)
    }

    private struct Result: Encodable {
        var names: [NameObject]
    }
}

struct NameSet: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "set", abstract: "Point a name at a checkpoint, whether the name is new or not.",
        discussion: """
            Example:
              ckstore name set vm.ck stable tuesday
              ckstore name set vm.ck stable latest
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name that moves.")
    var name: String
    @Argument(help: "The name of the checkpoint.")
    var checkpoint: String
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readWrite)
        defer { store.close() }
        try store.setReference(name, to: checkpoint)
        let info = try store.snapshot().checkpoint(named: name)
        try output.report(NameObject(name, info), summary: "\(printable(name)) leads to \(printable(info.name))\n")
    }
}

struct NameRemove: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "remove", abstract: "Remove a name that moves; its checkpoint stays.",
        discussion: """
            Example:
              ckstore name remove vm.ck stable
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The name that moves.")
    var name: String
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readWrite)
        defer { store.close() }
        try store.removeReference(name)
        try output.report(Result(removed: name), summary: "removed the name \(printable(name))\n")
    }

    private struct Result: Encodable {
        var removed: String
    }
}

/// A moving name and its checkpoint.
private struct NameObject: Encodable {
    var name: String
    var checkpoint: String
    var checkpointID: String

    init(_ name: String, _ info: CheckpointInfo) {
        self.name = name
        checkpoint = info.name
        checkpointID = info.id.description
    }
}
