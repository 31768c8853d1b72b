// Restores a machine, lets it run, saves it, and runs on until it is killed: one life of a machine in a process of its own.
//
// Usage: ReferenceMachineRunner DIRECTORY MICROSECONDS. The directory holds `state`, `memory` and `disk`, which are read and, after so
// many microseconds, written again; `output` then has what the guest has printed by that moment. Says "saved" when all that is done, and
// goes on. Where the guest comes to its end before, it says "halted".
//
// Invariant: what happens after "saved" changes none of these files: the machine works on a copy of its disk.

import CheckpointCore
import Foundation
import MachineMemory
import ReferenceMachine
import Units
import VirtualDisks

/// The directory's files.
struct Files {
    let directory: String

    func url(_ name: String) -> URL { URL(fileURLWithPath: directory).appendingPathComponent(name) }
    func read(_ name: String) throws -> [UInt8] { [UInt8](try Data(contentsOf: url(name))) }
    func write(_ bytes: [UInt8], _ name: String) throws { try Data(bytes).write(to: url(name)) }

    func copy(_ from: String, to: String) throws {
        try? FileManager.default.removeItem(at: url(to))
        try FileManager.default.copyItem(at: url(from), to: url(to))
    }
}

func say(_ text: String) { FileHandle.standardOutput.write(Data((text + "\n").utf8)) }

/// The state with the results of the requests that were pending, once they are done.
func settled(_ machine: ReferenceMachine, _ state: [UInt8]) throws -> [UInt8] {
    while true {
        do throws(EngineError) { return try machine.settledDeviceState(state) } catch {
            guard error.code == .busy else { throw error }
            usleep(100)
        }
    }
}

func live(_ files: Files, microseconds: UInt32) throws {
    let content = try files.read("memory")
    let memory = try GuestMemory("ram", byteLength: ByteCount(content.count), sharing: .shared)
    unsafe memory.bytes.copyBytes(from: content)
    try files.copy("disk", to: "work")
    let workers = try WorkerThreads(count: 1)
    defer { workers.close() }
    let disk = try VirtualDisk("work", parent: try FileBackend(files.url("work").path, workers: workers), workers: workers)
    defer { disk.drain() }
    let machine = try ReferenceMachine(restoring: try files.read("state"), "runner", memory: [memory], disks: [disk])
    defer { machine.close() }
    machine.resume()
    usleep(microseconds)
    let isHalted = try machine.waitUntilHalted(milliseconds: 0)
    machine.pause()
    let state = try settled(machine, try machine.deviceState())
    try files.write(state, "state")
    try files.write(unsafe [UInt8](UnsafeRawBufferPointer(memory.bytes)), "memory")
    try files.copy("work", to: "disk")
    try files.write(try files.read("output") + machine.serialOutput, "output")
    say(isHalted ? "halted" : "saved")
    guard !isHalted else { return }
    machine.resume()
    _ = try machine.waitUntilHalted(milliseconds: 60_000)
}

guard CommandLine.arguments.count == 3, let microseconds = UInt32(CommandLine.arguments[2]) else { exit(2) }
do { try live(Files(directory: CommandLine.arguments[1]), microseconds: microseconds) } catch {
    say("failed: \(error)")
    exit(1)
}
