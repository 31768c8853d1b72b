// The built command and a store of its own, for tests that go all the way.
//
// Invariant: every process that is started through it is waited for.

import Foundation
import Threading
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

    // MARK: - Live machines

    /// What `vm checkpoint --json` tells.
    public struct Report: Sendable, Decodable {
        /// A disk of the checkpoint.
        public struct Disk: Sendable, Decodable {
            public var name: String
            public var byteLength: UInt64
        }
        public var checkpoint: String
        public var engine: String
        public var stopMicroseconds, totalMicroseconds: Int64
        public var pages, newPages, storedBytes, deviceStateBytes: UInt64
        public var disks: [Disk]
    }

    /// How memory is captured.
    public enum Engine: String, Sendable { case background, external, auto }

    /// The arguments of a checkpoint of `guest`.
    public func checkpointArguments(_ guest: Guest, _ name: String, engine: Engine, latest: Bool = false) -> [String] {
        ["vm", "checkpoint", path, name, "--qmp", guest.machine.monitorPath, "--engine", engine.rawValue, "--json"]
            + (latest ? ["--latest"] : [])
    }

    /// Takes a checkpoint of a running guest.
    public func checkpoint(_ guest: Guest, _ name: String, engine: Engine, latest: Bool = false) throws -> Report {
        let arguments = checkpointArguments(guest, name, engine: engine, latest: latest)
        let outcome = try outcome(arguments)
        guard outcome.exitCode == 0 else {
            throw GuestTrouble("ckstore \(arguments.joined(separator: " ")) ended with \(outcome): \(outcome.errors)")
        }
        return try JSONDecoder().decode(Report.self, from: Data(outcome.output))
    }

    /// Brings a checkpoint of `original`'s back in a new QEMU and waits until its workload answers.
    ///
    /// The command runs on, as QEMU's parent, until QEMU ends.
    /// - Parameter images: raw images that are moved to where the machine has its disks, instead of the checkpoint's disks.
    public func restore(
        _ name: String, of original: GuestMachine, lazily: Bool = false, withDisks images: [String]? = nil, limitSeconds: Double = 60
    ) throws -> Guest {
        let machine = try GuestMachine(forRestoreOf: original)
        precondition(images?.count ?? machine.disks.count == machine.disks.count, "every disk has an image")
        for (image, place) in zip(images ?? [], machine.disks) { try FileManager.default.moveItem(atPath: image, toPath: place) }
        let disks = images == nil ? zip(machine.diskNames, machine.disks).flatMap { ["--disk", "\($0)=\($1)"] } : ["--no-disks"]
        let arguments =
            ["vm", "restore", path, name] + (lazily ? ["--lazy"] : []) + disks + ["--", GuestMachine.program] + machine.arguments
        let tool = Handed(try start(arguments))
        let ended = Lock<Outcome?>(nil)
        let thread = PlainThread {
            let outcome = try? tool.value.wait()
            ended.withLock { $0 = outcome }
        }
        guard thread != nil else { throw GuestTrouble("no thread to wait for the restore") }
        do {
            return try Guest(attachingTo: machine, limitSeconds: limitSeconds) { ended.withLock { $0 }.map { "\($0.errors)" } }
        } catch {
            // With no QEMU to end there is only the command.
            tool.value.send(SIGKILL)
            throw error
        }
    }
}
