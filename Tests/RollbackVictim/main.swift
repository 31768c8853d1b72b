// Takes checkpoints in a loop until it is killed, on a medium or in a backup process; or is that backup process.
//
// Invariant: a line is written, whole, before a checkpoint is begun and when it is durable, so that whoever reads the lines of a killed
// process knows what must and what may be there.

import CheckpointCore
import FaultHarness
import Foundation
import MachineMemory
import Media
import PageCodec
import Rollback
import Threading
import Units

/// Says something at once and in one piece.
private func say(_ text: String) {
    let line = Array((text + "\n").utf8)
    guard unsafe write(1, line, line.count) == line.count else { exit(3) }
}

/// The state that says what memory has to be with it, as the tests read it.
private func describe(_ number: Int, _ memory: GuestMemory) -> [UInt8] {
    let hash = unsafe hash128(UnsafeRawBufferPointer(memory.bytes))
    return [UInt8(number & 255), UInt8(number >> 8 & 255)] + Array("\(hash)".utf8)
}

/// Writes, takes checkpoints and rolls back for ever; begins with the number after `number`.
private func work(_ kind: RollbackStrategyKind, _ memory: GuestMemory, _ options: RollbackOptions, after number: Int) throws {
    var number = number
    var random = SeededGenerator(seed: UInt64(getpid()))
    say("begun \(number)")
    let rollback = try MemoryRollback.make(kind, memory, state: describe(number, memory), options: options)
    say("durable \(number)")
    while number < 60_000 {
        for _ in 0..<20 {
            let place = random.below(memory.byteLength.int / 8) * 8
            unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: place, as: UInt64.self)
        }
        if random.chance(1, in: 5) { _ = try rollback.rollback() }
        number += 1
        say("begun \(number)")
        try rollback.checkpoint(state: describe(number, memory))
        try rollback.settle()
        say("durable \(number)")
    }
}

private func serve(_ path: String) throws {
    let server = try BackupServer()
    let listener = try BackupListener(path: path)
    say("listening")
    while let socket = try listener.accept() {
        // The error is what ended the connection, and says itself to the other side.
        _ = PlainThread { try? server.serve(socket) }
    }
}

let arguments = CommandLine.arguments
do {
    let memory = try GuestMemory("ram", byteLength: .mebibytes(1))
    var options = RollbackOptions()
    switch (arguments.dropFirst().first, arguments.count) {
    case ("medium", 5):
        options.medium = try openMedium(try Locator(arguments[3]), access: .readWrite)
        try work(RollbackStrategyKind(rawValue: arguments[2])!, memory, options, after: Int(arguments[4])!)
    case ("primary", 3):
        options.connect = { () throws(EngineError) in try BackupSocket.connect(path: arguments[2]) }
        try work(.postImageRemote, memory, options, after: 0)
    case ("successor", 3):
        // Takes over, says what it has got, and goes on.
        let image = try TakenOverImage.takeOver(try BackupSocket.connect(path: arguments[2]))
        try image.restore(into: memory)
        image.close()
        let number = Int(image.state[0]) | Int(image.state[1]) << 8
        say(image.state == describe(number, memory) ? "taken \(number)" : "mixed \(number)")
        options.identity = image.identity
        options.connect = { () throws(EngineError) in try BackupSocket.connect(path: arguments[2]) }
        try work(.postImageRemote, memory, options, after: number)
    case ("backup", 3): try serve(arguments[2])
    default: exit(2)
    }
} catch {
    say("failed \(error)")
    exit(1)
}
