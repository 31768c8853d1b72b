// What the tests of captures share.

import CheckpointCore
import DiskCapture
import Foundation
import QMP
import Threading
import Units

/// Runs a body that blocks on a thread of its own and returns what it has found wrong.
func onThread(_ body: @escaping @Sendable () throws -> [String]) -> [String] {
    let result = Lock<[String]>([])
    let thread = PlainThread {
        do {
            let wrong = try body()
            result.withLock { $0 = wrong }
        } catch { result.withLock { $0 = ["\(error)"] } }
    }
    thread?.join()
    return thread == nil ? ["no thread"] : result.withLock { $0 }
}

/// Where the plugin is, built when the package's own is not beside the tests.
let plugin: String = {
    if let path = ProcessInfo.processInfo.environment["CKSTORE_NBD_PLUGIN"] { return path }
    let folder = URL(fileURLWithPath: CommandLine.arguments[0]).deletingLastPathComponent().path
    for candidate in [folder, Bundle.main.bundlePath] {
        let path = candidate + "/libckstore-nbd-log.so"
        if FileManager.default.fileExists(atPath: path) {
            unsafe setenv("CKSTORE_NBD_PLUGIN", path, 1)
            return path
        }
    }
    let root = URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent().path
    let path = NSTemporaryDirectory() + "/libckstore-nbd-log-\(getpid()).so"
    try? TinyMachine.run(
        "cc", ["-O2", "-fPIC", "-shared", "-o", path, root + "/Sources/CNBDLog/plugin.c", "-I", root + "/Sources/CNBDLog/include"])
    unsafe setenv("CKSTORE_NBD_PLUGIN", path, 1)
    atexit { unsafe unlink(plugin) }
    return path
}()

extension TinyMachine {
    /// A whole capture; what is wrong with it, and the machine's content at the instant.
    func capture(
        _ mode: DiskCapture.Mode, into sink: MemorySink, options: DiskCapture.Options? = nil, committed: Bool = true
    ) throws(EngineError) -> (model: [String: [UInt8]], reports: [DiskReport]) {
        _ = plugin
        let disks = try DiskCapture.writableDisks(of: qmp)
        let capture = DiskCapture(
            qmp: qmp, disks: disks, mode: mode, checkpoint: sink.id, parent: sink.parentID, options: options ?? self.options)
        try capture.prepare()
        usleep(20_000)
        let instant = try atStop { () throws(EngineError) in if mode == .atStop { try capture.switchAtStop() } }
        usleep(20_000)
        if mode == .logged { try capture.cut(resume: instant.resumed) }
        let reports = try capture.save(into: sink)
        try retire(capture, committed: committed)
        return (instant.model, reports)
    }
}

extension TinyMachine {
    /// Retires a capture. The monitor's writes don't stop with the machine, as a guest's would: where that counts, nobody writes.
    func retire(_ capture: DiskCapture, committed: Bool) throws(EngineError) {
        guard disks.contains(where: { $0.format == "raw" }) else {
            try capture.retire(committed: committed)
            return
        }
        try model.withLock { (_) throws(EngineError) in _ = try capture.retire(committed: committed) }
    }
}

/// Where two contents differ first.
func difference(_ what: String, _ found: [UInt8], _ wanted: [UInt8]) -> [String] {
    if found == wanted { return [] }
    if found.count != wanted.count { return ["\(what): \(found.count) bytes and not \(wanted.count)"] }
    let first = zip(found, wanted).enumerated().first { $0.element.0 != $0.element.1 }!
    return ["\(what): byte \(first.offset) is \(first.element.0) and not \(first.element.1)"]
}
