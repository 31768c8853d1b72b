// Streams between stores, by way of nameless files.
//
// Invariant: a stream is an array of bytes in between, so that a test can cut it anywhere and send it again.

import CheckpointStore
import CheckpointStream
import Glibc
import Units

/// Sending and receiving without a second thread.
package enum Transfer {
    /// The stream of these checkpoints of `snapshot`.
    package static func stream(_ items: [SendItem], of snapshot: Snapshot, parallelism: Int = 1) throws -> [UInt8] {
        let file = try NamelessFile()
        _ = try withExtendedLifetime(file) {
            try snapshot.send(items, to: file.descriptor, options: SendOptions(parallelism: parallelism))
        }
        return try file.bytes()
    }

    /// Receives a stream, or the part of one, into `store`.
    @discardableResult
    package static func receive(
        _ bytes: some Collection<UInt8>, into store: CheckpointStore, _ options: ReceiveOptions = ReceiveOptions(parallelism: 1)
    ) throws -> ReceiveReport {
        let file = try NamelessFile(Array(bytes))
        return try withExtendedLifetime(file) { try store.receive(from: file.descriptor, options: options) }
    }
}

/// A file without a name, which goes with its owner.
package final class NamelessFile {
    package let descriptor: Int32

    package init(_ bytes: [UInt8] = []) throws {
        var path = Array("/tmp/ckstore-stream-XXXXXX".utf8CString)
        descriptor = unsafe mkstemp(&path)
        guard descriptor >= 0 else { throw Mismatch("can't make a file: \(errno)") }
        unsafe unlink(path)
        var done = 0
        while done < bytes.count {
            let count = unsafe bytes[done...].withUnsafeBytes { unsafe write(descriptor, $0.baseAddress!, $0.count) }
            guard count > 0 else { throw Mismatch("can't write a file: \(errno)") }
            done += count
        }
        lseek(descriptor, 0, SEEK_SET)
    }

    deinit { close(descriptor) }

    package func bytes() throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: Int(lseek(descriptor, 0, SEEK_END)))
        let count = bytes.count
        let got = unsafe bytes.withUnsafeMutableBytes { unsafe pread(descriptor, $0.baseAddress, count, 0) }
        guard got == count else { throw Mismatch("can't read a file: \(errno)") }
        return bytes
    }
}
