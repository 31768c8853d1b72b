// `ckstore delete`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Delete: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Delete checkpoints: all that are named, or none.",
        discussion: """
            What other checkpoints share with them stays. Works on a full store too. A checkpoint that a moving name leads \
            to stays until that is moved or removed (`ckstore name`), but for `latest`, which goes back to the one before.

            Example:
              ckstore delete vm.ck monday tuesday
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The names of the checkpoints.")
    var names: [String]
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readWrite)
        defer { store.close() }
        let result = try store.delete(names)
        let freed = UInt64(result.freedSegments) * UInt64(store.geometry.segmentSize)
        let object = Result(
            deleted: result.deleted, freedSegments: result.freedSegments, freedBytes: freed, nodesRead: result.nodesRead,
            obstacle: result.obstacle.map(FailureObject.init))
        if let obstacle = result.obstacle {
            standardError("ckstore: deleted, but not all of the space was freed: what is still needed can't be told. \(obstacle)\n")
        }
        try output.report(object, summary: "deleted \(result.deleted.map(printable).joined(separator: ", ")), freed \(readable(ByteCount(freed)))\n")
        if let obstacle = result.obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
    }

    private struct Result: Encodable {
        var deleted: [String]
        var freedSegments: Int
        var freedBytes: UInt64
        /// Index blocks that were read to find out what nobody else needs.
        var nodesRead: Int
        /// Why some space could not be freed; absent when all is well.
        var obstacle: FailureObject?
    }
}
