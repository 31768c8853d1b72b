// The built command and a store of its own, for tests that go all the way.

import Foundation
import Units

/// A store in a temporary folder, used through the built `ckstore`.
public final class CommandStore {
    /// The store's path.
    public var path: String { folder.file("vm.ck") }
    private let folder: TemporaryFolder

    /// Makes the store.
    public init(size: ByteCount = .mebibytes(2048)) throws {
        folder = try TemporaryFolder()
        try run("create", path, "--size", "\(size)")
    }

    /// A path for something of the test's.
    public func file(_ name: String) -> String { folder.file(name) }

    /// Starts the command.
    public func start(_ arguments: [String]) throws -> RunningTool { try RunningTool(arguments, scratch: folder.path) }

    /// Runs the command to its end and answers how it ended.
    public func outcome(_ arguments: [String], limitSeconds: Double = 120) throws -> Outcome {
        try start(arguments).wait(limitSeconds: limitSeconds)
    }

    /// Runs the command, which must do its work.
    @discardableResult
    public func run(_ arguments: String..., limitSeconds: Double = 120) throws -> Outcome {
        let outcome = try outcome(arguments, limitSeconds: limitSeconds)
        guard outcome.exitCode == 0 else {
            throw GuestTrouble("ckstore \(arguments.joined(separator: " ")) ended with \(outcome): \(outcome.errors)")
        }
        return outcome
    }
}
