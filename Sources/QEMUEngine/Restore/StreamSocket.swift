// The connection on which a machine is fed: a stream socket, with calls that block.
//
// Invariants:
// - Sending and receiving are done by one thread each; `shutDown` may be called by any and wakes both.
// - The descriptor is closed by `close`, or when the last user lets go of the object; never while a call is under way.

import CheckpointCore
import CLinux
import Glibc
import Threading
import Units

/// One end of a connected stream socket.
final class StreamSocket: Sendable {
    private let number: Lock<Int32>
    /// The socket's descriptor; negative after `close`.
    var descriptor: Int32 { number.withLock { $0 } }

    /// Takes `descriptor` over.
    init(adopting descriptor: Int32) { number = Lock(descriptor) }

    deinit { close() }

    /// Lets go of the descriptor, which no call may be using. Harmless when done twice.
    func close() {
        number.withLock { number in
            if number >= 0 { ck_close(number) }
            number = -1
        }
    }

    /// Two ends of a connection within this host, closed on exec.
    /// - Parameter bufferBytes: how much the kernel shall hold on the way, as far as it allows that.
    static func pair(bufferBytes: ByteCount) throws(EngineError) -> (StreamSocket, StreamSocket) {
        var ends: [Int32] = [-1, -1]
        let type = Int32(SOCK_STREAM.rawValue) | Int32(SOCK_CLOEXEC.rawValue)
        guard unsafe socketpair(AF_UNIX, type, 0, &ends) == 0 else { throw EngineError(system: "make a pair of sockets", errno) }
        let sockets = (StreamSocket(adopting: ends[0]), StreamSocket(adopting: ends[1]))
        sockets.0.setBuffers(bufferBytes)
        sockets.1.setBuffers(bufferBytes)
        return sockets
    }

    /// Asks the kernel for buffers of that size. It gives what it allows: less only costs switches between the two ends.
    func setBuffers(_ size: ByteCount) {
        var value = Int32(clamping: size.rawValue)
        let length = socklen_t(MemoryLayout<Int32>.size)
        for (forced, plain) in [(SO_SNDBUFFORCE, SO_SNDBUF), (SO_RCVBUFFORCE, SO_RCVBUF)] {
            if unsafe setsockopt(descriptor, SOL_SOCKET, forced, &value, length) != 0 {
                _ = unsafe setsockopt(descriptor, SOL_SOCKET, plain, &value, length)
            }
        }
    }

    /// Sends all of `bytes`.
    /// - Throws: `.connection` when the other end has gone.
    func send(_ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        var done = 0
        while done < bytes.count {
            let count = unsafe Glibc.send(descriptor, bytes.baseAddress! + done, bytes.count - done, Int32(MSG_NOSIGNAL))
            if count < 0 {
                if errno == EINTR { continue }
                throw EngineError(.connection, "the machine has closed the connection on which it is loaded")
            }
            done += count
        }
    }

    /// Receives what is there, waiting for the first byte; 0: the other end has gone.
    func receive(into buffer: UnsafeMutableRawBufferPointer) -> Int {
        while true {
            let count = unsafe recv(descriptor, buffer.baseAddress, buffer.count, 0)
            if count < 0, errno == EINTR { continue }
            return max(0, count)
        }
    }

    /// Says that nothing more will be sent.
    func endSending() { _ = Glibc.shutdown(descriptor, Int32(SHUT_WR)) }

    /// Ends both directions; calls under way return.
    func shutDown() { _ = Glibc.shutdown(descriptor, Int32(SHUT_RDWR)) }
}
