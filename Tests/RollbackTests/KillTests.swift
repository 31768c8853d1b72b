// Processes killed in the middle of their checkpoints: what a medium, or a backup process, has of them.
//
// The page cache survives a killed process, so the kills say nothing about power cuts: those are simulated in MediumTests.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Media
import Rollback
import Testing
import Units

/// A process that is killed at the end of its use, and what it says.
private final class Victim {
    private let process = Process()
    private let pipe = Pipe()
    private var text = Data()

    static let program: String = {
        let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
        return URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("RollbackVictim").path
    }()

    init(_ arguments: [String]) throws {
        process.executableURL = URL(fileURLWithPath: Self.program)
        process.arguments = arguments
        process.standardOutput = pipe
        try process.run()
    }

    deinit { kill(process.processIdentifier, SIGKILL) }

    /// Waits until it has said something that contains `word`.
    func wait(for word: String) throws {
        while !String(decoding: text, as: UTF8.self).contains(word) {
            let more = pipe.fileHandleForReading.availableData
            if more.isEmpty { throw Mismatch("it ended with: \(String(decoding: text, as: UTF8.self))") }
            text += more
        }
    }

    /// Kills it and returns the numbers behind these words, the last of each.
    func killed() throws -> [String: Int] {
        kill(process.processIdentifier, SIGKILL)
        text += try pipe.fileHandleForReading.readToEnd() ?? Data()
        process.waitUntilExit()
        var last: [String: Int] = [:]
        for line in String(decoding: text, as: UTF8.self).split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 2, let number = Int(words[1]) else { throw Mismatch("it said: \(line)") }
            last[String(words[0])] = number
        }
        return last
    }
}

@Suite(.serialized) struct KillTests {
    private static func temporary(_ name: String) -> String {
        FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-rollback-\(name)-\(UUID())").path
    }

    @Test(arguments: localKinds)
    func `a killed process leaves its last checkpoint in a file`(_ kind: RollbackStrategyKind) async throws {
        try await onPlainThread {
            let path = Self.temporary("file")
            defer { try? FileManager.default.removeItem(atPath: path) }
            try Self.killOften(kind, try Locator(kind: .file, target: path), size: .zero)
        }
    }

    @Test func `a killed process leaves its last checkpoint in shared memory`() async throws {
        try await onPlainThread {
            let locator = try Locator(kind: .ram, target: "ckstore-rollback-\(getpid())")
            defer { try? removeMedium(locator) }
            try Self.killOften(.postImageTwoBitmaps, locator, size: .zero)
        }
    }

    @Test(.enabled(if: getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/loop-control"), "needs root and loop devices"))
    func `a killed process leaves its last checkpoint on a device`() async throws {
        try await onPlainThread {
            let backing = Self.temporary("device")
            defer { try? FileManager.default.removeItem(atPath: backing) }
            try run("truncate", "-s", "8M", backing)
            let device = try run("losetup", "--find", "--show", backing)
            defer { _ = try? run("losetup", "--detach", device) }
            try Self.killOften(.postImageLocal, try Locator(kind: .raw, target: device), size: nil)
        }
    }

    private static func killOften(_ kind: RollbackStrategyKind, _ locator: Locator, size: ByteCount?) throws {
        try createMedium(locator, size: size).close()
        let seed = newSeed()
        var random = SeededGenerator(seed: seed)
        var number = 0
        for round in 0..<12 {
            let victim = try Victim(["medium", kind.rawValue, "\(locator)", "\(number)"])
            try victim.wait(for: "durable \(number + 2)\n")
            usleep(useconds_t(random.below(25_000)))
            let said = try victim.killed()
            let medium = try openMedium(locator, access: .readWrite)
            defer { medium.close() }
            let found = try verifiedNumber(medium)
            guard found >= said["durable"]!, found <= said["begun"]! else {
                throw Mismatch("seed \(seed), round \(round): checkpoint \(found), said \(said)")
            }
            number = found + 1
        }
        try require(number > 24, "seed \(seed): only \(number) checkpoints")
    }

    @Test func `a backup process hands over what a killed process had committed`() async throws {
        try await onPlainThread {
            let path = Self.temporary("backup")
            let backup = try Victim(["backup", path])
            defer { _ = try? backup.killed() }
            defer { try? FileManager.default.removeItem(atPath: path) }
            try backup.wait(for: "listening")
            let seed = newSeed()
            var random = SeededGenerator(seed: seed)
            var victim = try Victim(["primary", path])
            try victim.wait(for: "durable 0\n")
            for round in 0..<12 {
                usleep(useconds_t(random.below(25_000)))
                let said = try victim.killed()
                victim = try Victim(["successor", path])
                try victim.wait(for: "durable")
                usleep(1000)
                // What it has taken is in its first line.
                let successor = victim
                let taken = try successor.killed()["taken"] ?? -1
                guard taken >= said["durable"]!, taken <= said["begun"]! else {
                    throw Mismatch("seed \(seed), round \(round): checkpoint \(taken) was handed over, said \(said)")
                }
                victim = try Victim(["successor", path])
                try victim.wait(for: "durable")
            }
            _ = try victim.killed()
        }
    }
}

/// Runs a program without a shell. Throws when it fails; returns its output without the last newline.
@discardableResult
private func run(_ program: String, _ arguments: String...) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [program] + arguments
    process.environment = ProcessInfo.processInfo.environment.merging(["PATH": "/usr/sbin:/usr/bin:/sbin:/bin"]) { $1 }
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    try require(process.terminationStatus == 0, "\(program) \(arguments) failed")
    return text.trimmingCharacters(in: .newlines)
}
