// Writers on a real file, killed at random moments.
//
// The page cache survives a killed process, so this says nothing about power cuts: those are simulated elsewhere.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreTesting
import Testing
import Units

/// What killed writers have said.
private struct Acknowledged {
    var present = Set<String>()
    /// Begun and not acknowledged: may be there.
    var open = Set<String>()
    var gone = Set<String>()

    mutating func read(_ output: String) throws {
        for line in output.split(separator: "\n") {
            let words = line.split(separator: " ", maxSplits: 1).map(String.init)
            guard words.count == 2 else { throw Mismatch("a writer said: \(line)") }
            switch words[0] {
            case "saving": open.insert(words[1])
            case "saved":
                open.remove(words[1])
                present.insert(words[1])
            case "deleting":
                present.remove(words[1])
                open.insert(words[1])
            case "deleted":
                open.remove(words[1])
                gone.insert(words[1])
            case "compacting": break
            default: throw Mismatch("a writer said: \(line)")
            }
        }
    }
}

@Suite(.serialized) struct KillTests {
    private static let program: String = {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        return URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("CrashWriter").path
    }()

    @Test func `killed writers leave everything that they acknowledged`() async throws {
        let saved = try await onPlainThread { try Self.killWriters(rounds: ProgrammeSize.scaled(100)) }
        #expect(saved > ProgrammeSize.scaled(60))
    }

    private static func killWriters(rounds: Int) throws -> Int {
        let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-killed-\(UUID().uuidString)").path
        defer { try? FileManager.default.removeItem(atPath: path) }
        try CheckpointStore.create(
            on: try createMedium(try Locator("file:" + path), size: .mebibytes(16)),
            options: CreateOptions(segmentSize: .kibibytes(256))
        ).close()
        let seed = UInt64.random(in: .min ... .max)
        var random = SeededGenerator(seed: seed)
        var said = Acknowledged()
        var saved = 0
        for round in 0..<rounds {
            do {
                for output in try run(path, prefixes: [["a"], ["a", "b"], ["a", KilledWriter.compactor]][round % 3], &random) { try said.read(output) }
                saved += try check(path, &said)
            } catch { throw Mismatch("seed \(seed), round \(round): \(error)") }
        }
        return saved
    }

    /// Starts writers, kills them after a while and returns what they said.
    private static func run(_ path: String, prefixes: [String], _ random: inout SeededGenerator) throws -> [String] {
        var running: [(process: Process, pipe: Pipe, output: Data)] = []
        for prefix in prefixes {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: program)
            process.arguments = [path, prefix]
            let pipe = Pipe()
            process.standardOutput = pipe
            try process.run()
            running.append((process, pipe, Data()))
        }
        // On a busy machine it takes a while until they are at work.
        for index in running.indices { running[index].output = running[index].pipe.fileHandleForReading.availableData }
        usleep(useconds_t(random.below(50_000)))
        for writer in running { kill(writer.process.processIdentifier, SIGKILL) }
        return try running.map { process, pipe, first in
            let output = first + (try pipe.fileHandleForReading.readToEnd() ?? Data())
            process.waitUntilExit()
            return String(decoding: output, as: UTF8.self)
        }
    }

    /// Checks the file and settles what was open. Returns how many checkpoints there are.
    private static func check(_ path: String, _ said: inout Acknowledged) throws -> Int {
        let store = try CheckpointStore.open(try openMedium(try Locator("file:" + path), access: .readWrite))
        defer { store.close() }
        let names = Set(try store.snapshot().names())
        let missing = said.present.subtracting(names)
        let strange = names.subtracting(said.present).subtracting(said.open)
        guard missing.isEmpty, strange.isEmpty else {
            throw Mismatch("\(missing.sorted()) are missing, \(strange.sorted()) should not be there")
        }
        try store.requireEqual(
            Dictionary(uniqueKeysWithValues: names.map { ($0, ["ram": KilledWriter.content($0)]) }))
        said.present = names
        said.open = []
        return names.count
    }
}
