import CheckpointCore
@testable import DiskCapture
import Foundation
import QMP
import Testing
import Units

@Suite(.serialized) struct FailureTests {
    /// A prepared capture of a machine with one qcow2 disk, and the machine.
    private static func prepared(
        _ mode: DiskCapture.Mode, _ seed: UInt64 = .random(in: 0...UInt64.max)
    ) throws -> (TinyMachine, DiskCapture) {
        let machine = try TinyMachine([TinyDisk(name: "vda")], seed: seed)
        _ = plugin
        for _ in 0..<10 { try machine.writeSomething() }
        let capture = DiskCapture(
            qmp: machine.qmp, disks: try DiskCapture.writableDisks(of: machine.qmp), mode: mode, checkpoint: .random(), parent: nil,
            options: machine.options)
        try capture.prepare()
        return (machine, capture)
    }

    /// What an operation throws.
    private static func error(_ body: () throws(EngineError) -> Void) -> EngineError? {
        do throws(EngineError) { try body() } catch { return error }
        return nil
    }

    /// What is wrong with a machine after a capture that failed.
    private static func look(at machine: TinyMachine, _ before: [String]) throws -> [String] {
        for _ in 0..<5 { try machine.writeSomething() }
        var wrong = machine.remains()
        if try machine.chain() != before { wrong.append("\(try machine.chain()) and not \(before)") }
        for disk in machine.disks {
            wrong += difference(disk.name, try machine.finalContent(disk.name), machine.model.withLock { $0[disk.name]! })
        }
        return wrong
    }

    @Test func `a log whose server is killed fails the capture and not the guest`() {
        let wrong = onThread {
            let (machine, capture) = try Self.prepared(.logged)
            try machine.writeSomething()
            kill(capture.state.withLock { $0.logServer!.process }, SIGKILL)
            for _ in 0..<5 { try machine.writeSomething() }
            let resumed = try machine.atStop().resumed
            let error = Self.error { () throws(EngineError) in try capture.cut(resume: resumed) }
            try capture.retire(committed: false)
            let before = try machine.chain()
            return try Self.look(at: machine, before) + (error?.code == .ioFailed ? [] : ["\(String(describing: error))"])
                + before.filter { $0.contains("ckstore") }
        }
        #expect(wrong == [])
    }

    @Test func `a log whose server hangs is broken off when the capture ends`() {
        let wrong = onThread {
            let (machine, capture) = try Self.prepared(.logged)
            kill(capture.state.withLock { $0.logServer!.process }, SIGSTOP)
            machine.startWriting()
            usleep(50_000)
            try capture.retire(committed: false)
            machine.stopWriting()
            let before = try machine.chain()
            return try Self.look(at: machine, before) + before.filter { $0.contains("ckstore") }
        }
        #expect(wrong == [])
    }

    @Test func `a checkpoint that is not committed leaves its parent's bitmap right`() {
        let wrong = onThread {
            let machine = try TinyMachine(CaptureTests.twoDisks, seed: .random(in: 0...UInt64.max))
            let parent = MemorySink()
            var wrong: [String] = []
            for mode in [DiskCapture.Mode.atStop, .logged] {
                for _ in 0..<30 { try machine.writeSomething() }
                _ = try machine.capture(mode, into: MemorySink(parent: parent), committed: mode == .atStop && parent.contents.isEmpty)
            }
            _ = try machine.capture(.atStop, into: parent)
            for round in 0..<3 {
                for _ in 0..<3 { try machine.writeSomething() }
                let sink = MemorySink(parent: parent)
                let (model, reports) = try machine.capture(round == 1 ? .logged : .atStop, into: sink, committed: false)
                if !reports.allSatisfy(\.isIncremental) { wrong.append("round \(round) is not incremental") }
                for disk in machine.disks { wrong += difference("\(round), \(disk.name)", sink.disk(disk.name), model[disk.name]!) }
            }
            return wrong
        }
        #expect(wrong == [])
    }

    @Test func `an incremental capture reads what was changed and little else`() {
        let wrong = onThread {
            let machine = try TinyMachine([TinyDisk(name: "vda"), TinyDisk(name: "vdb")], seed: 1)
            for disk in machine.disks { try machine.write(disk.name, 7, at: 0, count: 16 << 20) }
            let parent = MemorySink()
            let full = try machine.capture(.atStop, into: parent).reports
            try machine.write("vda", 8, at: 5 << 20, count: 4096)
            try machine.write("vda", 0, at: 9 << 20, count: 512)
            let sink = MemorySink(parent: parent)
            let (model, reports) = try machine.capture(.atStop, into: sink)
            var wrong = difference("vda", sink.disk("vda"), model["vda"]!) + difference("vdb", sink.disk("vdb"), model["vdb"]!)
            if full.map(\.bytesRead.int) != [16 << 20, 16 << 20] { wrong.append("full: \(full)") }
            if reports.map(\.bytesRead.int) != [8192, 0] { wrong.append("incremental: \(reports)") }
            if sink.pagesPut("vda") != 2 { wrong.append("\(sink.pagesPut("vda")) pages were put") }
            return wrong
        }
        #expect(wrong == [])
    }

    @Test func `a capture without bitmaps leaves none and is whole`() {
        let wrong = onThread {
            let machine = try TinyMachine([TinyDisk(name: "vda")], seed: .random(in: 0...UInt64.max))
            for _ in 0..<10 { try machine.writeSomething() }
            var options = machine.options
            options.keepsBitmap = false
            let sink = MemorySink()
            let (model, _) = try machine.capture(.atStop, into: sink, options: options)
            let bitmaps = try BlockLayer(machine.qmp).nodes().flatMap(\.bitmaps).map(\.name)
            return difference("vda", sink.disk("vda"), model["vda"]!) + bitmaps
        }
        #expect(wrong == [])
    }

    @Test func `where QEMU's NBD server is in use, images are read without it, and it stays`() {
        let wrong = onThread {
            let machine = try TinyMachine(CaptureTests.twoDisks, seed: .random(in: 0...UInt64.max))
            for _ in 0..<20 { try machine.writeSomething() }
            try machine.qmp.execute(
                "nbd-server-start", ["addr": ["type": "unix", "data": ["path": .string(machine.folder + "/mine")]]])
            var wrong: [String] = []
            for mode in [DiskCapture.Mode.atStop, .logged] {
                let sink = MemorySink()
                let (model, _) = try machine.capture(mode, into: sink)
                for disk in machine.disks { wrong += difference(disk.name, sink.disk(disk.name), model[disk.name]!) }
            }
            if !FileManager.default.fileExists(atPath: machine.folder + "/mine") { wrong.append("the user's server is gone") }
            return wrong + machine.remains()
        }
        #expect(wrong == [])
    }

    @Test func `a folder without room for overlays is refused before anything happens`() {
        let wrong = onThread {
            let machine = try TinyMachine([TinyDisk(name: "vda")], seed: 1)
            let before = try machine.chain()
            var options = machine.options
            options.minimumFreeBytes = ByteCount(UInt64.max >> 1)
            let capture = DiskCapture(
                qmp: machine.qmp, disks: try DiskCapture.writableDisks(of: machine.qmp), mode: .atStop, checkpoint: .random(),
                parent: nil, options: options)
            let error = Self.error { () throws(EngineError) in try capture.prepare() }
            return try Self.look(at: machine, before) + (error?.code == .noSpace ? [] : ["\(String(describing: error))"])
        }
        #expect(wrong == [])
    }

    @Test func `overlays in a folder of their own are committed back from there`() {
        let wrong = onThread {
            let small = "/tmp/ckdisks-small-\(UInt32.random(in: 0...UInt32.max))"
            try FileManager.default.createDirectory(atPath: small, withIntermediateDirectories: true)
            defer { unsafe rmdir(small) }
            try TinyMachine.run("mount", ["-t", "tmpfs", "-o", "size=2m", "none", small])
            defer { try? TinyMachine.run("umount", ["-l", small]) }
            let machine = try TinyMachine([TinyDisk(name: "vda")], seed: 1)
            let before = try machine.chain()
            var options = machine.options
            options.overlayFolder = small
            options.minimumFreeBytes = .mebibytes(1)
            let capture = DiskCapture(
                qmp: machine.qmp, disks: try DiskCapture.writableDisks(of: machine.qmp), mode: .atStop, checkpoint: .random(),
                parent: nil, options: options)
            try capture.prepare()
            _ = try machine.atStop { () throws(EngineError) in try capture.switchAtStop() }
            try machine.write("vda", 3, at: 0, count: 1 << 20)
            try capture.retire(committed: false)
            return try Self.look(at: machine, before)
        }
        #expect(wrong == [])
    }

    @Test func `a commit that gets no time leaves the disk whole, and is finished later`() {
        let wrong = onThread {
            let machine = try TinyMachine([TinyDisk(name: "vda")], seed: 1)
            let before = try machine.chain()
            var options = machine.options
            options.commitTimeoutMilliseconds = 0
            let capture = DiskCapture(
                qmp: machine.qmp, disks: try DiskCapture.writableDisks(of: machine.qmp), mode: .atStop, checkpoint: .random(),
                parent: nil, options: options)
            try capture.prepare()
            _ = try machine.atStop { () throws(EngineError) in try capture.switchAtStop() }
            try machine.write("vda", 3, at: 0, count: 8 << 20)
            let error = Self.error { () throws(EngineError) in try capture.retire(committed: false) }
            try machine.write("vda", 4, at: 4 << 20, count: 8 << 20)
            let busy = Self.error { () throws(EngineError) in _ = try DiskCapture.writableDisks(of: machine.qmp) }
            _ = try DiskCapture.cleanUp(machine.qmp)
            return try Self.look(at: machine, before)
                + (error?.code == .timeout && error?.remedy.contains("qemu-img commit") == true ? [] : ["\(String(describing: error))"])
                + (busy?.code == .busy ? [] : ["\(String(describing: busy))"])
        }
        #expect(wrong == [])
    }
}
