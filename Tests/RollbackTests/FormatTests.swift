// The image on a medium, read by somebody who knows nothing but its description; and one image byte by byte.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Media
import Rollback
import Testing
import Units

@Suite(.serialized) struct FormatTests {
    private static let reader = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
        .appending(path: "Formats/rollback.py").path

    @Test func `Python reads what every strategy has kept, from the description alone`() async throws {
        try await onPlainThread {
            let seed = newSeed()
            var random = SeededGenerator(seed: seed)
            for kind in localKinds {
                let directory = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-rollback-\(UUID())")
                try FileManager.default.createDirectory(at: directory, withIntermediateDirectories: false)
                defer { try? FileManager.default.removeItem(at: directory) }
                let medium = try createMedium(try Locator(kind: .file, target: directory.appendingPathComponent("image").path))
                let memory = try GuestMemory("main memory", byteLength: .mebibytes(1))
                var options = RollbackOptions()
                options.medium = medium
                try withRollback(kind, memory, options: options) { rollback in
                    for number in 1...5 {
                        for _ in 0..<60 {
                            let place = random.below(memory.byteLength.int / 8) * 8
                            unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: place, as: UInt64.self)
                        }
                        try rollback.checkpoint(state: describe(number, memory))
                    }
                    try rollback.settle()
                }
                medium.close()
                let said = try Self.read(directory)
                try require(said == "6 main memory\n", "seed \(seed), \(kind): it read \(said)")
                let content = try [UInt8](Data(contentsOf: directory.appendingPathComponent("memory")))
                try memory.requireEqual(content, "seed \(seed), \(kind)")
                let state = try [UInt8](Data(contentsOf: directory.appendingPathComponent("state")))
                try require(state == describe(5, memory), "seed \(seed), \(kind): state \(state)")
            }
        }
    }

    private static func read(_ directory: URL) throws -> String {
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/python3")
        process.arguments = ["-B", reader] + ["image", "memory", "state"].map { directory.appendingPathComponent($0).path }
        let output = Pipe()
        process.standardOutput = output
        try process.run()
        let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
        process.waitUntilExit()
        try require(process.terminationStatus == 0, "rollback.py: exit code \(process.terminationStatus)")
        return text
    }

    @Test func `an image has its fields where the description says`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .zero)
            let medium = FaultMedium(device)
            let memory = try GuestMemory("m", byteLength: ByteCount(3 * pageSize))
            unsafe memory.bytes[pageSize] = 7
            var options = RollbackOptions()
            options.medium = medium
            options.stateCapacity = ByteCount(100)
            try withRollback(.postImageBitmap, memory, state: [0xAB], options: options) { _ in }
            // 4 records, twice state and table, twice three pages.
            try require(device.size.int == 4 * 4096 + 2 * (4096 + 4096) + 2 * 3 * 4096, "\(device.size) bytes")
            let record = device.bytes(at: MediumOffset(4096), count: 4096)
            try require(record == device.bytes(at: MediumOffset(3 * 4096), count: 4096), "the second record differs")
            try require(device.bytes(at: .zero, count: 4096).allSatisfy { $0 == 0 }, "slot 0 is used")
            try require(Array(record[0..<12]) == Array("CKROLL1".utf8) + [0, 1, 0, 0, 0], "magic and version: \(record[0..<12])")
            // Epoch 1, 3 pages of memory, 4096 bytes for state, of which 1 is used.
            let sizes: [UInt8] = [1, 0x3000, 0x1000, 1].flatMap { number in (0..<8).map { UInt8(truncatingIfNeeded: number >> (8 * $0)) } }
            try require(Array(record[32..<64]) == sizes, "sizes: \(record[32..<64])")
            try require(record[96] == 1 && record[112] == UInt8(ascii: "m"), "the name")
            let area = 4 * 4096 + 8192
            try require(device.bytes(at: MediumOffset(area), count: 2) == [0xAB, 0], "the state")
            let table = device.bytes(at: MediumOffset(area + 4096), count: 49)
            try require(table[0..<16].allSatisfy { $0 == 0 } && table[16..<32].contains { $0 != 0 } && table[48] & 2 == 2, "the table: \(table)")
            try require(device.bytes(at: MediumOffset(4 * 4096 + 2 * 8192 + 3 * 4096 + 4096), count: 2) == [7, 0], "page 1 at location 1")
            medium.close()
        }
    }
}
