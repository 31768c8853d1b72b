// Where QEMU writes a stream that must never fail: memory that it holds itself, read behind its growing end.
//
// QEMU 7.2 leaves a guest's memory write-protected for ever when the sink of a background snapshot fails or stalls. A memfd that QEMU
// got by `getfd` can do neither, whatever becomes of this process; what has been read is punched out, so that it takes no more memory
// than the store is behind.
//
// Invariants:
// - Nothing is ever written here by this process.
// - `drain` returns only when the writer has ended and all bytes have been read or given up.

import CLinux
import CheckpointCore
import Glibc
import MigrationStream
import Threading
import Units

/// A memfd that a stream is written into and read out of at the same time.
final class StreamSpool: Sendable {
    /// To be passed to QEMU.
    let descriptor: Int32
    private let ended = Lock(false)

    /// The name under which QEMU keeps the descriptor until `migrate` takes it.
    static let passedName = "ckstore-stream"
    private static let chunkBytes = 4 << 20
    private static let pollMicroseconds: UInt32 = 500

    init() throws(EngineError) {
        descriptor = unsafe ck_open_anonymous("ckstore-stream", false)
        if descriptor < 0 { throw EngineError(system: "create anonymous memory", -descriptor) }
    }

    deinit { ck_close(descriptor) }

    /// The writer has written its last byte, or never will: `drain` may end.
    func end() { ended.withLock { $0 = true } }

    /// Reads the stream while it grows. Blocks until `end` was called.
    ///
    /// An error of `handler` does not stop the reading: the rest is thrown away as it comes, so that the writer meets
    /// nothing but room; then the error is thrown.
    func drain(_ parser: StreamParser, into handler: inout some StreamHandler) throws(EngineError) {
        var parser = parser
        var failure: EngineError?
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.chunkBytes, alignment: pageSize)
        defer { unsafe buffer.deallocate() }
        var position: UInt64 = 0
        var held = 0
        while true {
            // Looked at before the size: what was written before the end is then seen.
            let isEnded = ended.withLock { $0 }
            let size = try length()
            if position == size {
                if isEnded { break }
                usleep(Self.pollMicroseconds)
                continue
            }
            if failure != nil {
                punch(from: position, to: size)
                position = size
                continue
            }
            do throws(EngineError) {
                let room = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[held...])
                let count = try unsafe read(at: position, min(UInt64(room.count), size - position), into: room)
                let filled = unsafe UnsafeRawBufferPointer(rebasing: buffer[0..<held + count])
                let consumed = try unsafe parser.feed(filled, &handler)
                held = filled.count - consumed
                unsafe memmove(buffer.baseAddress!, buffer.baseAddress! + consumed, held)
                punch(from: position, to: position + UInt64(count))
                position += UInt64(count)
            } catch { failure = error }
        }
        if let failure { throw failure }
        try parser.finish()
    }

    private func length() throws(EngineError) -> UInt64 {
        var status = ck_file_status()
        let result = unsafe ck_status(descriptor, &status)
        if result < 0 { throw EngineError(system: "look at the stream's memory", -result) }
        return status.size
    }

    private func read(
        at position: UInt64, _ count: UInt64, into buffer: UnsafeMutableRawBufferPointer
    ) throws(EngineError) -> Int {
        while true {
            let result = unsafe pread(descriptor, buffer.baseAddress!, Int(count), off_t(position))
            if result > 0 { return result }
            if result < 0, errno == EINTR { continue }
            throw EngineError(system: "read the stream's memory", result < 0 ? errno : EIO)
        }
    }

    /// Gives memory back that has been read. Failing costs memory and nothing else; the worst case was found to fit before the start.
    private func punch(from start: UInt64, to end: UInt64) {
        let first = start / UInt64(pageSize) * UInt64(pageSize)
        let last = end / UInt64(pageSize) * UInt64(pageSize)
        if last > first { _ = ck_punch(descriptor, first, last - first) }
    }
}
