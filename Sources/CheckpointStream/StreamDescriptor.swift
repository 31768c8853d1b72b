// Reading and writing a stream through a descriptor: a pipe, a file, a socket.
//
// Invariants:
// - A descriptor is used, never closed: it is the caller's.
// - A socket whose other side has gone is an error. Where a pipe's reader may go away, the process must not let SIGPIPE end it.

import CheckpointStore
import Glibc
import Threading

/// Lets another thread end a receive that waits for its sender. Thread-safe.
public final class StreamCancellation: Sendable {
    private let state = Lock(false)
    public init() {}
    /// Makes the work throw `.cancelled` soon.
    public func cancel() { state.withLock { $0 = true } }
    /// Whether it was cancelled.
    public var isCancelled: Bool { state.withLock { $0 } }
}

/// One end of a stream. Used by one thread at a time.
struct StreamDescriptor: Sendable {
    let number: Int32
    private let cancellation: StreamCancellation?
    private let isSocket: Bool
    /// How often a wait looks whether it was cancelled.
    private static let waitMilliseconds: Int32 = 200

    init(number: Int32, cancellation: StreamCancellation?) {
        self.number = number
        self.cancellation = cancellation
        var status = stat()
        isSocket = unsafe fstat(number, &status) == 0 && status.st_mode & S_IFMT == S_IFSOCK
    }

    /// Fills `buffer` as far as there is something to read before the end. Returns how much that is.
    /// - Throws: `.ioFailed`, `.cancelled`.
    func read(into buffer: UnsafeMutableRawBufferPointer) throws(StoreError) -> Int {
        guard let base = buffer.baseAddress else { return 0 }
        var done = 0
        while done < buffer.count {
            try waitUntil(POLLIN)
            let got = unsafe Glibc.read(number, base + done, buffer.count - done)
            if got == 0 { break }
            if got > 0 { done += got } else if errno != EINTR && errno != EAGAIN { throw failure("read the stream") }
        }
        return done
    }

    /// Writes all of `bytes`.
    /// - Throws: `.cutStream` when the other side has ended, `.noSpace`, `.ioFailed`, `.cancelled`.
    func write(_ bytes: UnsafeRawBufferPointer) throws(StoreError) {
        guard let base = bytes.baseAddress else { return }
        var done = 0
        while done < bytes.count {
            try waitUntil(POLLOUT)
            let (next, left) = (unsafe base + done, bytes.count - done)
            let count = isSocket ? unsafe send(number, next, left, Int32(MSG_NOSIGNAL)) : unsafe Glibc.write(number, next, left)
            if count >= 0 { done += count } else if errno != EINTR && errno != EAGAIN { throw failure("write the stream") }
        }
    }

    /// Waits until a read or write would not block. What can't be waited for is ready, or says so when it is used.
    private func waitUntil(_ event: Int32) throws(StoreError) {
        while true {
            if let cancellation, cancellation.isCancelled { throw StoreError(.cancelled, "the stream was cancelled") }
            var wait = pollfd(fd: number, events: Int16(event), revents: 0)
            let status = unsafe poll(&wait, 1, cancellation == nil ? -1 : Self.waitMilliseconds)
            if status > 0 || (status < 0 && errno != EINTR) { return }
        }
    }

    private func failure(_ what: String) -> StoreError {
        let (number, text) = (errno, unsafe String(cString: strerror(errno)))
        switch number {
        case EPIPE, ECONNRESET:
            return StoreError(.cutStream, "can't \(what): the other side has ended", remedy: "See what the other side says.")
        case ENOSPC, EDQUOT, EFBIG:
            return StoreError(.noSpace, "can't \(what): \(text)", remedy: "Free space there, then try again.")
        default: return StoreError(.ioFailed, "can't \(what): \(text)")
        }
    }
}
