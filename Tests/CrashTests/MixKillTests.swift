// Several processes that do everything at once, on a real file and on a loop device, killed at random moments.
//
// Invariants:
// - Each process says what it is about to do and what is done; the book kept of that says what must and what may be there.
// - The page cache survives a killed process, so this says nothing about power cuts: those are simulated elsewhere.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Foundation
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

/// What the processes have said.
private struct MixBook {
    var present = Set<String>()
    /// May be there.
    var open = Set<String>()
    /// Where the name that each process moves may lead: to a checkpoint, or to nothing.
    var targets: [String: Set<String>] = [:]
    var counts: [String: Int] = [:]

    /// Takes the lines of one process; the last one may be cut short by nothing, since each is written at once.
    mutating func read(_ output: String) throws {
        for line in output.split(separator: "\n") {
            let words = line.split(separator: " ", maxSplits: 1).map(String.init)
            guard words.count == 2 else { throw Mismatch("a process said: \(line)") }
            counts[words[0], default: 0] += 1
            try read(words[0], words[1])
        }
    }

    private mutating func read(_ verb: String, _ name: String) throws {
        let owner = String(name.prefix(1))
        switch verb {
        case "saving", "deleting":
            present.remove(name)
            open.insert(name)
        case "saved", "kept":
            open.remove(name)
            present.insert(name)
        case "refused", "deleted":
            open.remove(name)
            present.remove(name)
        case "pointing": targets[owner, default: []].insert(name)
        case "pointed": targets[owner] = [name]
        case "unpointing": targets[name, default: []].insert("")
        case "unpointed": targets[name] = [""]
        default: throw Mismatch("a process said: \(verb) \(name)")
        }
    }

    /// Holds the store against the book, and enters what was open as it is.
    mutating func settle(_ store: CheckpointStore) throws {
        let snapshot = try store.snapshot()
        let names = Set(try snapshot.names().filter { !Names.isPartial($0) })
        let missing = present.subtracting(names)
        let strange = names.subtracting(present).subtracting(open)
        guard missing.isEmpty, strange.isEmpty else {
            throw Mismatch("\(missing.sorted()) are missing, \(strange.sorted()) should not be there")
        }
        var found: [String: String] = [:]
        for reference in try snapshot.references() where reference.name != Reference.latest {
            found[reference.name] = try snapshot.checkpoint(reference.checkpoint).name
        }
        for prefix in KilledWriter.mixers {
            let target = found["name-\(prefix)"] ?? ""
            guard targets[prefix, default: [""]].contains(target) else {
                throw Mismatch("name-\(prefix) leads to '\(target)' and should lead to one of \(targets[prefix, default: [""]].sorted())")
            }
            targets[prefix] = [target]
        }
        try store.requireEqual(Dictionary(uniqueKeysWithValues: names.map { ($0, ["ram": KilledWriter.content($0)]) }))
        (present, open) = (names, [])
    }
}

/// A medium that real processes share.
private struct MixMedium {
    /// What a process opens.
    var locator: String
    /// The file below it.
    var path: String

    /// Bytes that the file takes on its disk.
    var diskBytes: Int {
        var status = stat()
        return unsafe stat(path, &status) == 0 ? Int(status.st_blocks) * 512 : -1
    }
}

@Suite(.serialized) struct MixKillTests {
    private static let program: String = {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        return URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("CrashWriter").path
    }()

    @Test func `killed processes that do everything at once leave what they acknowledged, and space comes back`() async throws {
        try await onPlainThread {
            let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-mix-\(UUID().uuidString)").path
            defer { try? FileManager.default.removeItem(atPath: path) }
            try Self.killMixers(on: MixMedium(locator: "file:" + path, path: path), rounds: ProgrammeSize.scaled(60))
        }
    }

    @Test(.enabled(if: geteuid() == 0, "loop devices are made by root"))
    func `the same on a block device`() async throws {
        try await onPlainThread {
            let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-mix-\(UUID().uuidString)").path
            defer { try? FileManager.default.removeItem(atPath: path) }
            guard FileManager.default.createFile(atPath: path, contents: nil, attributes: [.posixPermissions: 0o600]),
                unsafe truncate(path, off_t(Self.size.rawValue)) == 0
            else { throw Mismatch("can't make a file of 16 MiB") }
            // Where the system has no loop devices there is nothing to try.
            guard let device = try Self.losetup(["-f", "--show", path]) else { return print("no loop device: left out") }
            defer { _ = try? Self.losetup(["-d", device]) }
            try Self.killMixers(on: MixMedium(locator: "raw:" + device, path: path), rounds: ProgrammeSize.scaled(20))
        }
    }

    private static let size = ByteCount.mebibytes(16)

    /// Runs `losetup`; nil when it fails.
    private static func losetup(_ arguments: [String]) throws -> String? {
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/sbin/losetup")
        guard FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup") else { return nil }
        process.arguments = arguments
        let pipe = Pipe()
        process.standardOutput = pipe
        process.standardError = FileHandle.nullDevice
        try process.run()
        let output = try pipe.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        return process.terminationStatus == 0 ? String(decoding: output, as: UTF8.self).trimmingCharacters(in: .newlines) : nil
    }

    private static func killMixers(on medium: MixMedium, rounds: Int) throws {
        let seed = ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? .random(in: 0...UInt64(UInt32.max))
        try CheckpointStore.create(
            on: try createMedium(try Locator(medium.locator), size: size), options: CreateOptions(segmentSize: .kibibytes(256))
        ).close()
        var random = SeededGenerator(seed: seed)
        var book = MixBook()
        for round in 0..<rounds {
            do {
                let started = 1 + round % KilledWriter.mixers.count
                for output in try run(medium.locator, Array(KilledWriter.mixers.prefix(started)), &random) { try book.read(output) }
                let store = try open(medium)
                defer { store.close() }
                try book.settle(store)
            } catch { throw Mismatch("CKSTORE_TEST_SEED=\(seed), round \(round): \(error)") }
        }
        print("\(rounds) kills from seed \(seed): \(book.counts.map { "\($0.key) \($0.value)" }.sorted().joined(separator: ", "))")
        try requireSpaceComesBack(medium)
        #expect(book.counts["saved", default: 0] > rounds)
    }

    private static func open(_ medium: MixMedium) throws -> CheckpointStore {
        try CheckpointStore.open(try openMedium(try Locator(medium.locator), access: .readWrite))
    }

    /// Starts processes and kills them one after the other; returns what each has said.
    private static func run(_ locator: String, _ prefixes: [String], _ random: inout SeededGenerator) throws -> [String] {
        var running: [(process: Process, pipe: Pipe, output: Data)] = []
        for prefix in prefixes {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: program)
            process.arguments = [locator, KilledWriter.mixer + prefix, "\(random.next())"]
            let pipe = Pipe()
            process.standardOutput = pipe
            try process.run()
            running.append((process, pipe, Data()))
        }
        // On a busy machine it takes a while until they are at work.
        for index in running.indices { running[index].output = running[index].pipe.fileHandleForReading.availableData }
        usleep(useconds_t(random.below(150_000)))
        for one in running.shuffled(using: &random) {
            kill(one.process.processIdentifier, SIGKILL)
            // The others notice that it is gone, or have its locks.
            usleep(useconds_t(random.below(10_000)))
        }
        return try running.map { process, pipe, first in
            let output = first + (try pipe.fileHandleForReading.readToEnd() ?? Data())
            process.waitUntilExit()
            return String(decoding: output, as: UTF8.self)
        }
    }

    /// Deletes everything: what is left is the catalog, in the store and on the disk.
    private static func requireSpaceComesBack(_ medium: MixMedium) throws {
        let store = try open(medium)
        defer { store.close() }
        let snapshot = try store.snapshot()
        for reference in try snapshot.references() where reference.name != Reference.latest { try store.removeReference(reference.name) }
        try store.discardPartialCheckpoints()
        let names = try snapshot.names().filter { !Names.isPartial($0) }
        if !names.isEmpty, let obstacle = try store.delete(names).obstacle { throw obstacle }
        try store.compactAll()
        try store.requireEqual([:])
        let info = try store.info()
        let others = info.segments.filter { $0.segmentClass != .catalog }
        guard others.isEmpty, info.usedSegments == info.segments.count else {
            throw Mismatch("an empty store has \(info.usedSegments) used segments: \(others.prefix(3))")
        }
        print("empty: \(info.usedSegments) segments used, \(medium.diskBytes >> 10) KiB on the disk")
    }
}
