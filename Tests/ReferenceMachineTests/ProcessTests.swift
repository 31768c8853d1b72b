// Machines that live on in other processes, each killed after it has saved.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import ReferenceMachine
import Testing
import Units

extension ReferenceMachineTests {
    @Suite(.serialized) struct ProcessTests {
        @Test func `a machine whose process is killed over and over goes on in the next, and ends as an undisturbed one`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                for sort in ["counter", "disk"] {
                    let program = sort == "disk" ? Workload.disk(150, seed) : Workload.counter(6, 1500, seed)
                    let processors = sort == "disk" ? 1 : 2
                    let expected = sort == "disk" ? Workload.model(150, seed).output
                        : Workload.model(processors: 2, 6, 1500, seed).output
                    try withDirectory { directory in
                        try Self.begin(directory, program, processors, seed)
                        var random = SeededGenerator(seed: seed)
                        var lives = 1
                        while try Self.live(directory, microseconds: lives < 4 ? 0 : random.below(25_000)) { lives += 1 }
                        let output = String(decoding: try read("\(directory)/output"), as: UTF8.self)
                        try require(output == expected, "\(sort), \(lives) lives: printed \(output), not \(expected)")
                        try require(lives >= 3, "\(sort): only \(lives) lives, nothing was shown")
                        let undisturbed = try Self.undisturbed(program, processors, seed)
                        try require(try read("\(directory)/memory") == undisturbed.memory, "\(sort), \(lives) lives: memory differs")
                        try require(try read("\(directory)/disk") == undisturbed.disk, "\(sort), \(lives) lives: the disk differs")
                    }
                }
            }
        }

        /// Leaves a new machine, which has not run, in the directory.
        private static func begin(_ directory: String, _ program: GuestProgram, _ processors: Int, _ seed: UInt64) throws {
            let memory = try Workload.memory()
            let disk = TestDisk(Workload.diskContent(seed), seed: seed)
            defer { disk.close() }
            let machine = try ReferenceMachine("first", memory: [memory], disks: [disk], virtualCPUCount: processors, program: program)
            defer { machine.close() }
            try write(try machine.deviceState(), to: "\(directory)/state")
            try write(memory.content, to: "\(directory)/memory")
            try write(disk.content, to: "\(directory)/disk")
            try write([], to: "\(directory)/output")
        }

        /// One life in a process, which is killed a little after it has saved. False when the guest has come to its end.
        private static func live(_ directory: String, microseconds: Int) throws -> Bool {
            let process = Process()
            process.executableURL = URL(fileURLWithPath: runner)
            process.arguments = [directory, String(microseconds)]
            let pipe = Pipe()
            process.standardOutput = pipe
            try process.run()
            let said = String(decoding: pipe.fileHandleForReading.availableData, as: UTF8.self)
            usleep(2000)
            kill(process.processIdentifier, SIGKILL)
            process.waitUntilExit()
            try require(said == "saved\n" || said == "halted\n", "the runner says: \(said)")
            return said == "saved\n"
        }

        private static func undisturbed(
            _ program: GuestProgram, _ processors: Int, _ seed: UInt64
        ) throws -> (memory: [UInt8], disk: [UInt8]) {
            let memory = try Workload.memory()
            let disk = TestDisk(Workload.diskContent(seed), seed: seed)
            defer { disk.close() }
            let machine = try ReferenceMachine(
                "undisturbed", memory: [memory], disks: [disk], virtualCPUCount: processors, program: program)
            defer { machine.close() }
            try machine.finish()
            return (memory.content, disk.content)
        }

        private static let runner: String = {
            let own = (try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")) ?? CommandLine.arguments[0]
            return URL(fileURLWithPath: own).deletingLastPathComponent().appendingPathComponent("ReferenceMachineRunner").path
        }()

        private func withDirectory(_ body: (String) throws -> Void) throws {
            let url = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-reference-\(UUID().uuidString)")
            try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true)
            defer { try? FileManager.default.removeItem(at: url) }
            try body(url.path)
        }
    }
}
