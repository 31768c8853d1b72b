import CheckpointCore
import DiskCapture
import Foundation
import QMP
import Testing
import Threading
import Units

@Suite(.serialized) struct CleanUpTests {
    /// What a capture does, over a connection that may break at any time.
    private static func capture(
        _ mode: DiskCapture.Mode, _ machine: TinyMachine, over qmp: QMPClient, into sink: MemorySink
    ) throws(EngineError) {
        let disks = try DiskCapture.writableDisks(of: qmp)
        let capture = DiskCapture(qmp: qmp, disks: disks, mode: mode, checkpoint: sink.id, parent: sink.parentID, options: machine.options)
        try capture.prepare()
        try machine.writeSomething()
        let (_, resumed) = try machine.atStop { () throws(EngineError) in if mode == .atStop { try capture.switchAtStop() } }
        try machine.writeSomething()
        if mode == .logged { try capture.cut(resume: resumed) }
        _ = try capture.save(into: sink)
        try machine.writeSomething()
        try machine.retire(capture, committed: true)
    }

    /// Breaks the connection after every number of commands that a capture needs, cleans up over another, and looks.
    private static func everyStage(_ mode: DiskCapture.Mode, seed: UInt64) throws -> [String] {
        let machine = try TinyMachine(CaptureTests.twoDisks, seed: seed)
        _ = plugin
        let rescue = try machine.rescue()
        for _ in 0..<20 { try machine.writeSomething() }
        // A parent, whose bitmaps must outlive everything.
        let parent = MemorySink()
        _ = try machine.capture(mode, into: parent)
        let before = try machine.chain()
        var wrong: [String] = []
        var isWhole = false
        // Every stage in some runs; some stages in every run.
        let isThorough = ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1"
        var generator = SplitMix(state: seed)
        var stage = 1
        while !isWhole, wrong.isEmpty {
            let proxy = CuttingProxy(before: machine.folder + "/cut")
            do throws(EngineError) {
                let qmp = try QMPClient.connect(path: proxy.path)
                defer { qmp.close() }
                // Closed at this end first: who waits hears of it at once.
                proxy.breakAfter(stage) { qmp.close() }
                try capture(mode, machine, over: qmp, into: MemorySink(parent: parent))
                isWhole = true
            } catch {
                // A machine that was stopped by the test itself.
                if try machine.qmp.execute("query-status")["status"]?.string == "paused", !(try machine.chain().contains { $0.hasSuffix("-stop") }) {
                    try machine.qmp.execute("cont")
                }
            }
            let first = try machine.model.withLock { (_) throws(EngineError) in try DiskCapture.cleanUp(rescue) }
            if !(try DiskCapture.cleanUp(rescue).isEmpty) { wrong.append("stage \(stage): there was something to do a second time") }
            if isWhole, !first.isEmpty { wrong.append("a whole capture left \(first)") }
            if try machine.chain() != before { wrong.append("stage \(stage), \(first): \(try machine.chain()) and not \(before)") }
            if try machine.qmp.execute("query-status")["running"]?.bool != true { wrong.append("stage \(stage): the guest stands still") }
            wrong += machine.remains().map { "stage \(stage): \($0)" }
            if !isWhole, stage % 4 == 0 {
                // The parent's bitmap has every write since: an incremental capture on it is right.
                let sink = MemorySink(parent: parent)
                let (model, reports) = try machine.capture(.atStop, into: sink, committed: false)
                // Where nothing was left to do, the capture was as good as retired, and the parent's bitmaps were going.
                if !first.isEmpty, !reports.allSatisfy(\.isIncremental) { wrong.append("stage \(stage): the parent's bitmap is gone") }
                for disk in machine.disks {
                    wrong += difference("stage \(stage), \(disk.name)", sink.disk(disk.name), model[disk.name]!)
                }
            }
            stage += isThorough ? 1 : Int.random(in: 1...9, using: &generator)
        }
        print("\(mode): \(stage) stages")
        for disk in machine.disks {
            wrong += difference("in the end, \(disk.name)", try machine.finalContent(disk.name), machine.model.withLock { $0[disk.name]! })
        }
        return wrong
    }

    @Test func `a capture at a stop that is killed after any command is cleaned up`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        #expect(onThread { try Self.everyStage(.atStop, seed: seed) } == [], "seed \(seed)")
    }

    @Test func `a logged capture that is killed after any command is cleaned up`() {
        let seed = UInt64.random(in: 0...UInt64.max)
        #expect(onThread { try Self.everyStage(.logged, seed: seed) } == [], "seed \(seed)")
    }
}
