import CheckpointCore
import DiskCapture
import Foundation
import QMP
import Testing
import Units

@Suite(.serialized) struct CaptureTests {
    static let twoImages = [TinyDisk(name: "vda"), TinyDisk(name: "hdb", isDrive: false)]
    static let twoDisks = [TinyDisk(name: "vda"), TinyDisk(name: "hdb", format: "raw", byteLength: 9 << 20 | 512, isDrive: false)]

    /// Three checkpoints in a row under writes; each must be the disk at its instant, and the images what was written in the end.
    private static func rounds(_ mode: DiskCapture.Mode, _ disks: [TinyDisk], seed: UInt64) throws -> [String] {
        let machine = try TinyMachine(disks, seed: seed)
        var wrong: [String] = []
        let before = try machine.chain()
        for _ in 0..<60 { try machine.writeSomething() }
        machine.startWriting()
        var parent: MemorySink?
        for round in 0..<3 {
            let sink = MemorySink(parent: parent)
            let (model, reports) = try machine.capture(mode, into: sink)
            for disk in machine.disks {
                wrong += difference("round \(round), \(disk.name)", sink.disk(disk.name), model[disk.name]!)
            }
            if reports.contains(where: { $0.isIncremental != (round > 0) }) { wrong.append("round \(round): \(reports)") }
            if mode == .logged, reports.allSatisfy({ $0.loggedWrites == 0 }) { wrong.append("nothing was logged") }
            parent = sink
        }
        machine.stopWriting()
        if try machine.chain() != before { wrong.append("the chain is \(try machine.chain()) and not \(before)") }
        wrong += machine.remains()
        for disk in machine.disks {
            wrong += difference("in the end, \(disk.name)", try machine.finalContent(disk.name), machine.model.withLock { $0[disk.name]! })
        }
        return wrong
    }

    @Test func `captures at a stop are the disks at that stop, and leave the chain as it was`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        #expect(onThread { try Self.rounds(.atStop, Self.twoDisks, seed: seed) } == [], "seed \(seed)")
    }

    @Test func `logged captures are the disks at the stop, and leave the chain as it was`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        #expect(onThread { try Self.rounds(.logged, Self.twoDisks, seed: seed) } == [], "seed \(seed)")
    }

    @Test func `commits back while there are writes to both disks lose none`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        #expect(onThread { try Self.rounds(.atStop, Self.twoImages, seed: seed) } == [], "seed \(seed)")
        #expect(onThread { try Self.rounds(.logged, Self.twoImages, seed: seed) } == [], "seed \(seed)")
    }
}
