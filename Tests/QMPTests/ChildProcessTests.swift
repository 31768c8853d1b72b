import CheckpointCore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import Testing
import Threading

/// What a programme writes to its standard output.
private func output(of executable: String, _ arguments: [String], inheriting: [(parent: Int32, child: Int32)] = []) throws -> String {
    let pipe = Pipe()
    let child = try ChildProcess.spawn(
        executable: executable, arguments: arguments,
        inheriting: inheriting + [(pipe.fileHandleForWriting.fileDescriptor, 1)], diesWithParent: true)
    try pipe.fileHandleForWriting.close()
    let bytes = try pipe.fileHandleForReading.readToEnd() ?? Data()
    guard try child.wait(timeoutMilliseconds: 60_000) == .exited(0) else { throw GuestTrouble("\(executable) failed") }
    return String(decoding: bytes, as: UTF8.self)
}

@Test func `a child's end is told as it was`() async throws {
    let statuses = try await onPlainThread { () -> [ChildProcess.Status?] in
        var statuses: [ChildProcess.Status?] = []
        for code in [0, 1, 127, 255] {
            let child = try ChildProcess.spawn(executable: "sh", arguments: ["-c", "exit \(code)"], diesWithParent: code == 1)
            statuses.append(try child.wait(timeoutMilliseconds: nil))
            statuses.append(try child.wait(timeoutMilliseconds: 0))
            try child.kill()
        }
        let child = try ChildProcess.spawn(executable: "/bin/sleep", arguments: ["1000"], diesWithParent: true, inNewSession: true)
        statuses.append(try child.wait(timeoutMilliseconds: 20))
        try child.kill(signal: SIGTERM)
        statuses.append(try child.wait(timeoutMilliseconds: 60_000))
        return statuses
    }
    #expect(
        statuses == [
            .exited(0), .exited(0), .exited(1), .exited(1), .exited(127), .exited(127), .exited(255), .exited(255), nil,
            .killed(signal: SIGTERM),
        ])
}

@Test func `what can't be started is told, and leaves nothing`() async throws {
    let codes = try await onPlainThread {
        let folder = try TemporaryFolder()
        let file = folder.file("plain")
        guard FileManager.default.createFile(atPath: file, contents: Data("text".utf8), attributes: [.posixPermissions: 0o600]) else {
            throw GuestTrouble("no file")
        }
        return [true, false].map { diesWithParent in
            ["no-such-programme-anywhere", folder.file("missing"), file, folder.path, "a\0b"].map { executable in
                errorCode { _ = try ChildProcess.spawn(executable: executable, arguments: [], diesWithParent: diesWithParent) }
            }
        }
    }
    for codes in codes { #expect(codes == [.notFound, .notFound, .permission, .permission, .invalidInput]) }
}

@Test func `a child has the descriptors it was given, under their numbers, and no others`() async throws {
    let (list, swapped) = try await onPlainThread { () -> ([String], [String]) in
        let pipes = (Pipe(), Pipe())
        // Open in this process, and not marked to be closed.
        let stray = dup(0)
        defer { close(stray) }
        let sleeper = try ChildProcess.spawn(
            executable: "sleep", arguments: ["1000"],
            inheriting: [(pipes.0.fileHandleForReading.fileDescriptor, 7), (pipes.1.fileHandleForReading.fileDescriptor, 9)],
            diesWithParent: true)
        let list = try FileManager.default.contentsOfDirectory(atPath: "/proc/\(sleeper.pid)/fd").sorted()
        try sleeper.kill()
        try sleeper.wait(timeoutMilliseconds: nil)
        // Each under the other's number.
        let (first, second) = (pipes.0.fileHandleForReading.fileDescriptor, pipes.1.fileHandleForReading.fileDescriptor)
        try pipes.0.fileHandleForWriting.write(contentsOf: Data("first".utf8))
        try pipes.1.fileHandleForWriting.write(contentsOf: Data("second".utf8))
        try pipes.0.fileHandleForWriting.close()
        try pipes.1.fileHandleForWriting.close()
        let swapped = try [first, second].map { number in
            try output(of: "cat", ["/proc/self/fd/\(number)"], inheriting: [(first, second), (second, first)])
        }
        return (list, swapped)
    }
    #expect(list == ["0", "1", "2", "7", "9"])
    #expect(swapped == ["second", "first"])
}

@Test func `a child starts with its signals at their defaults`() async throws {
    let status = try await onPlainThread {
        var (ignored, before, blocked) = (sigaction(), sigaction(), sigset_t())
        unsafe ignored.__sigaction_handler.sa_handler = SIG_IGN
        unsafe sigaction(SIGUSR2, &ignored, &before)
        unsafe sigemptyset(&blocked)
        unsafe sigaddset(&blocked, SIGUSR1)
        unsafe pthread_sigmask(SIG_BLOCK, &blocked, nil)
        defer {
            unsafe pthread_sigmask(SIG_UNBLOCK, &blocked, nil)
            unsafe sigaction(SIGUSR2, &before, nil)
        }
        let child = Pipe()
        let process = try ChildProcess.spawn(
            executable: "cat", arguments: ["/proc/self/status"], inheriting: [(child.fileHandleForWriting.fileDescriptor, 1)],
            diesWithParent: false)
        try child.fileHandleForWriting.close()
        let text = String(decoding: try child.fileHandleForReading.readToEnd() ?? Data(), as: UTF8.self)
        try process.wait(timeoutMilliseconds: nil)
        return text
    }
    let lines = status.split(separator: "\n")
    #expect(lines.contains("SigBlk:\t0000000000000000"), "\(status)")
    let ignored = try #require(lines.first { $0.hasPrefix("SigIgn:\t") }?.dropFirst(8))
    // Signals 32 and 33 are the C library's own.
    #expect(UInt64(ignored, radix: 16).map { $0 & ~(3 << 31) } == 0, "\(status)")
}

/// Makes a FIFO and opens it to read, without waiting for a writer.
private func openFIFO(_ path: String) throws -> Int32 {
    guard unsafe mkfifo(path, 0o600) == 0 else { throw GuestTrouble("no FIFO: error \(errno)") }
    return unsafe open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC)
}

@Test func `a child that shall die with its parent does, however the parent ends, and not with a thread of it`() async throws {
    for diesWithParent in [true, false] {
        let folder = try TemporaryFolder()
        let path = folder.file("life")
        let reading = try openFIFO(path)
        defer { close(reading) }
        await #expect(processExitsWith: .signal(SIGKILL)) { [path = path as String, diesWithParent = diesWithParent as Bool] in
            let writing = unsafe open(path, O_WRONLY | O_CLOEXEC)
            let thread = PlainThread {
                _ = try? ChildProcess.spawn(
                    executable: "sh", arguments: ["-c", "echo $$ >&5; exec sleep 1000"],
                    inheriting: [(writing, 5), (writing, 1), (writing, 2)], diesWithParent: diesWithParent)
            }
            thread?.join()
            // Long enough for a child to die with the thread.
            usleep(200_000)
            _ = unsafe write(writing, "parent\n", 7)
            raise(SIGKILL)
        }
        let text = try await onPlainThread {
            var (text, polled) = ("", pollfd(fd: reading, events: Int16(POLLIN), revents: 0))
            var bytes = [UInt8](repeating: 0, count: 4096)
            while unsafe poll(&polled, 1, diesWithParent ? 30_000 : 500) > 0 {
                let count = unsafe read(reading, &bytes, bytes.count)
                if count <= 0 { return text + "end" }
                text += String(decoding: bytes.prefix(count), as: UTF8.self)
            }
            return text
        }
        let lines = text.split(separator: "\n")
        try #require(lines.count >= 2, "\(text)")
        let child = try #require(Int32(lines[0]))
        #expect(lines[1] == "parent")
        #expect((lines.last == "end") == diesWithParent, "\(text)")
        if !diesWithParent { kill(child, SIGKILL) }
    }
}
