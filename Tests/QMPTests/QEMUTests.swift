import CheckpointCore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading

/// A QEMU without a machine, which ends with this process at the latest.
private final class BareQEMU: Sendable {
    let process: ChildProcess
    let path: String
    private let folder: TemporaryFolder

    init() throws {
        folder = try TemporaryFolder()
        path = folder.file("qmp")
        process = try ChildProcess.spawn(
            executable: "qemu-system-x86_64",
            arguments: ["-machine", "none", "-display", "none", "-nodefaults", "-qmp", "unix:\(path),server=on,wait=off"],
            diesWithParent: true)
    }

    deinit {
        try? process.kill()
        _ = try? process.wait(timeoutMilliseconds: 10_000)
    }

    /// Connects, once QEMU listens.
    func connect() throws -> QMPClient {
        for _ in 0..<1000 {
            do throws(EngineError) { return try QMPClient.connect(path: path, timeoutMilliseconds: 30_000) } catch {
                guard error.code == .notFound || error.code == .connection else { throw error }
                usleep(20_000)
            }
        }
        throw GuestTrouble("QEMU does not listen")
    }
}

@Test func `a real QEMU is asked, given a descriptor, and quits`() async throws {
    let seen = try await onPlainThread { () -> (text: [String?], codes: [EngineError.Code?], error: EngineError?) in
        let qemu = try BareQEMU()
        let client = try qemu.connect()
        let asked = try client.execute("query-version")["qemu"]?["major"]?.integer.map(String.init)
        let pipe = Pipe()
        try client.pass(descriptor: pipe.fileHandleForReading.fileDescriptor, named: "a")
        try client.pass(descriptor: pipe.fileHandleForReading.fileDescriptor, named: "b")
        let name = try FileManager.default.destinationOfSymbolicLink(
            atPath: "/proc/self/fd/\(pipe.fileHandleForReading.fileDescriptor)")
        let folder = "/proc/\(client.processID)/fd"
        let links = try FileManager.default.contentsOfDirectory(atPath: folder).compactMap {
            try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\($0)")
        }
        var codes = [
            errorCode { try client.execute("no-such-command") },
            errorCode { try client.execute("closefd", ["fdname": "c"]) },
            errorCode { _ = try QMPClient.connect(path: qemu.path, timeoutMilliseconds: 200) },
        ]
        try client.execute("quit")
        let event = try client.waitForEvent(after: 0, timeoutMilliseconds: 30_000) { $0.name == "SHUTDOWN" }
        var reason: EngineError?
        do throws(EngineError) { _ = try client.waitForEvent(after: event.sequence, timeoutMilliseconds: nil) { _ in false } } catch { reason = error }
        codes.append(errorCode { try client.execute("query-status") })
        let status = try qemu.process.wait(timeoutMilliseconds: 30_000)
        return (
            [
                asked == client.version.split(separator: ".").first.map(String.init) ? "same" : asked,
                String(client.processID == qemu.process.pid), String(links.count { $0 == name }), status?.description,
            ], codes, reason
        )
    }
    #expect(seen.text == ["same", "true", "2", "exit code 0"])
    #expect(seen.codes == [.refused, .refused, .busy, .exited])
    #expect(seen.error?.code == .exited)
    #expect(seen.error?.reason.hasSuffix("exit code 0") == true, "\(String(describing: seen.error))")
}

@Test func `a connection to a real QEMU is taken over in the middle of a command`() async throws {
    let (status, code, version) = try await onPlainThread {
        let qemu = try BareQEMU()
        let first = try qemu.connect()
        let descriptor = dup(first.descriptor)
        first.close()
        // What a process leaves that dies while it sends, its last answer not read.
        try FakeConnection(descriptor).send(#"{"execute": "query-status", "id": "left"} {"execute": "query-st"#)
        let second = try QMPClient(adopting: descriptor, timeoutMilliseconds: 30_000)
        let status = try second.execute("query-status")["status"]?.string
        try qemu.process.kill()
        return (status, errorCode { _ = try second.waitForEvent(after: 0, timeoutMilliseconds: nil) { _ in false } }, (first.version, second.version))
    }
    #expect(status != nil)
    #expect(code == .exited)
    #expect(version.0 == version.1)
}
