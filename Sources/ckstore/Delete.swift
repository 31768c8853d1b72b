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

            Others can save meanwhile. Where something that leads to their pages can't be read, checkpoints go all the same; what \
            stands below that counts as used until `ckstore repair` has counted anew.

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
            unreadable: result.unreadable.isEmpty ? nil : result.unreadable.map(FailureObject.init),
            obstacle: result.obstacle.map(FailureObject.init))
        result.reportObstacle()
        try output.report(object, summary: "deleted \(result.deleted.map(printable).joined(separator: ", ")), freed \(readable(ByteCount(freed)))\n")
        if let obstacle = result.obstacle { throw ExitCode(ExitStatus.code(for: obstacle)) }
    }

    private struct Result: Encodable {
        var deleted: [String]
        var freedSegments: Int
        var freedBytes: UInt64
        /// Index blocks that were read to find out what nobody else needs.
        var nodesRead: Int
        /// Blocks that can't be read, so that what stands below them still counts as used; absent when all is well.
        var unreadable: [FailureObject]?
        /// Why some space could not be freed; absent when all is well.
        var obstacle: FailureObject?
    }
}

extension DeleteResult {
    /// Says on standard error which space is not free, why, and how to get it back.
    func reportObstacle() {
        guard let obstacle else { return }
        standardError("ckstore: deleted, but not all of the space was freed. \(obstacle)\n")
        for error in unreadable.prefix(Self.fewUnreadable) {
            standardError("  not read: \(error.offset.map { "offset \($0): " } ?? "")\(error.reason)\n")
        }
        if unreadable.count > Self.fewUnreadable { standardError("  and \(unreadable.count - Self.fewUnreadable) more\n") }
    }

    private static let fewUnreadable = 10
}
