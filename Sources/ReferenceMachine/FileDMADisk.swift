// A disk whose content is a file or block device.
//
// Invariants:
// - One thread carries requests out in the order of their submission: overlapping ones can't overtake each other.
// - `close` returns when all that was submitted has been completed.

import CLinux
import CheckpointCore
import Threading
import Units

/// A disk in a file. Thread-safe.
public final class FileDMADisk: DMADisk {
    /// The file's path.
    public let path: String
    public let byteLength: ByteCount
    private let file: OwnedDescriptor
    private let queue = Lock(Queue())

    private struct Request {
        var operation: DMAOperation
        var offset: ByteCount
        var buffer: DMABuffer?
        var completion: @Sendable (Result<Void, EngineError>) -> Void
    }
    private struct Queue {
        var waiting: [Request] = []
        var thread: PlainThread?
        var isClosed = false
    }

    /// Opens an existing image for reading and writing; its length, rounded down to sectors of 512 bytes, is the disk's.
    ///
    /// - Throws: `.notFound`, `.permission`, `.ioFailed` from the system; `.invalidInput` when it has no sector; `.noMemory`.
    public init(_ path: String) throws(EngineError) {
        self.path = path
        file = OwnedDescriptor(owning: try checked(unsafe ck_open(path, UInt32(CK_READ_WRITE.rawValue)), "open the disk", place: path))
        byteLength = try Self.byteLength(of: file, path)
        guard let thread = PlainThread({ [queue, file, path] in Self.serve(queue, file, path) }) else {
            throw EngineError(.noMemory, "can't start the disk's thread", place: path)
        }
        queue.withLock { $0.thread = thread }
    }

    deinit { precondition(queue.withLock { $0.isClosed }, "a disk is closed by its owner") }

    public func submit(
        _ operation: DMAOperation, at offset: ByteCount, _ buffer: DMABuffer?,
        completion: @escaping @Sendable (Result<Void, EngineError>) -> Void
    ) {
        precondition(offset <= byteLength && (buffer?.byteCount ?? .zero) <= byteLength - offset, "within the disk")
        queue.withLock { queue in
            precondition(!queue.isClosed, "the disk is open")
            queue.waiting.append(Request(operation: operation, offset: offset, buffer: buffer, completion: completion))
        }
        queue.wake()
    }

    /// Waits for what was submitted and ends the disk's thread. Not to be called by a completion.
    public func close() {
        let thread: PlainThread? = queue.withLock { queue in
            queue.isClosed = true
            defer { queue.thread = nil }
            return queue.thread
        }
        queue.wake()
        thread?.join()
        file.close()
    }

    private static func byteLength(of file: OwnedDescriptor, _ path: String) throws(EngineError) -> ByteCount {
        var status = ck_file_status()
        try checked(unsafe ck_status(file.number, &status), "look at the disk", place: path)
        var byteLength = status.size
        if status.type == CK_BLOCK {
            try checked(unsafe ck_device_size(file.number, &byteLength), "ask for the disk's size", place: path)
        }
        let length = byteLength / sectorSize.rawValue * sectorSize.rawValue
        guard length > 0 else {
            throw EngineError(
                .invalidInput, "the image has less than one sector of 512 bytes", remedy: "Make it as long as the disk is to be.",
                place: path)
        }
        return ByteCount(length)
    }

    // MARK: The thread

    private static func serve(_ queue: Lock<Queue>, _ file: OwnedDescriptor, _ path: String) {
        while true {
            // Empty when the disk has been closed.
            let batch: [Request] = queue.waitFor { queue in
                if queue.waiting.isEmpty { return queue.isClosed ? [] : nil }
                defer { queue.waiting = [] }
                return queue.waiting
            }
            if batch.isEmpty { return }
            for request in batch {
                request.completion(Result { () throws(EngineError) in try carryOut(request, file, path) })
            }
        }
    }

    private static func carryOut(_ request: Request, _ file: OwnedDescriptor, _ path: String) throws(EngineError) {
        guard let buffer = request.buffer else {
            try checked(ck_flush_data(file.number), "flush the disk", place: path)
            return
        }
        let offset = request.offset.rawValue
        var done = 0
        while done < buffer.byteCount.int {
            let rest = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[done...])
            let count =
                request.operation == .read
                ? unsafe ck_read_at(file.number, rest.baseAddress!, rest.count, offset + UInt64(done))
                : unsafe ck_write_at(file.number, rest.baseAddress!, rest.count, offset + UInt64(done))
            try checked(count, "\(request.operation) \(buffer.byteCount) bytes at \(request.offset)", place: path)
            guard count > 0 else {
                throw EngineError(
                    .ioFailed, "the image has become shorter", remedy: "Give it back its length, and restore a checkpoint.", place: path)
            }
            done += Int(count)
        }
    }
}
