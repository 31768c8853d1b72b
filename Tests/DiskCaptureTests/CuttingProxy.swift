// A monitor connection that breaks after a given number of commands: as if who used it had been killed there.
//
// Invariant: the last command is carried out before the connection breaks; none comes after it.

import CLinux
import CheckpointCore
import Foundation
import Threading

/// Stands between one client and a monitor's socket.
final class CuttingProxy: Sendable {
    /// Where the client connects.
    let path: String
    private let listener: Int32
    private let commands: Lock<Int>
    private let cut: Lock<(limit: Int, action: @Sendable () -> Void)?>
    private let threads = Lock<[PlainThread]>([])

    /// Commands passed on.
    var count: Int { commands.withLock { $0 } }

    init(before monitor: String) {
        path = monitor + ".proxy"
        let cut = Lock<(limit: Int, action: @Sendable () -> Void)?>(nil)
        self.cut = cut
        commands = Lock(0)
        unsafe unlink(path)
        let listener = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        self.listener = listener
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        unsafe withUnsafeMutableBytes(of: &address.sun_path) { unsafe $0.copyBytes(from: path.utf8) }
        let bound = unsafe withUnsafePointer(to: &address) { pointer in
            unsafe pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) { unsafe bind(listener, $0, socklen_t(MemoryLayout<sockaddr_un>.size)) }
        }
        precondition(bound == 0 && listen(listener, 1) == 0)
        let commands = commands
        let thread = PlainThread {
            let client = accept(listener, nil, nil)
            let server = unsafe ck_connect_local(monitor)
            precondition(client >= 0 && server >= 0)
            Self.pass(client, server, commands, cut)
            close(client)
            close(server)
        }
        threads.withLock { $0 = [thread!] }
    }

    /// Breaks the connection when `limit` more commands have been carried out; `action` is run then.
    func breakAfter(_ limit: Int, _ action: @escaping @Sendable () -> Void) {
        let before = count
        cut.withLock { $0 = (before + limit, action) }
    }

    deinit {
        shutdown(listener, Int32(SHUT_RDWR))
        for thread in threads.withLock({ $0 }) { thread.join() }
        close(listener)
        unsafe unlink(path)
    }

    /// Passes both directions on until the answer to the last command is there, or somebody ends.
    private static func pass(_ client: Int32, _ server: Int32, _ commands: Lock<Int>,
        _ cut: Lock<(limit: Int, action: @Sendable () -> Void)?>
    ) {
        var buffer = [UInt8](repeating: 0, count: 1 << 16)
        var answer: [UInt8] = []
        while true {
            var polls = [pollfd(fd: client, events: Int16(POLLIN), revents: 0), pollfd(fd: server, events: Int16(POLLIN), revents: 0)]
            _ = unsafe poll(&polls, 2, -1)
            for (index, from, to) in [(0, client, server), (1, server, client)] where polls[index].revents != 0 {
                let count = unsafe read(from, &buffer, buffer.count)
                if count <= 0 { return }
                if index == 0 { commands.withLock { $0 += buffer[..<count].count { $0 == UInt8(ascii: "\n") } } }
                if index == 1, let (limit, action) = cut.withLock({ $0 }), commands.withLock({ $0 >= limit }) {
                    answer += buffer[..<count]
                    let lines = answer.split(separator: UInt8(ascii: "\n"), omittingEmptySubsequences: false)
                    let isAnswered = lines.dropLast().contains { line in
                        let text = String(decoding: line, as: UTF8.self)
                        return text.contains("\"return\"") || text.contains("\"error\"")
                    }
                    if isAnswered {
                        action()
                        return
                    }
                    answer = [UInt8](lines.last!)
                }
                _ = unsafe write(to, buffer, count)
            }
        }
    }
}
