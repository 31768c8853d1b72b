// A file or a block device as a guest's device.
//
// Invariants:
// - A write completes when the device has it: it goes past the page cache, or is flushed out of it. Otherwise a device that fails later would have
//   taken the data with it without anybody knowing which.
// - Every operation that was accepted completes, also when the device is being closed.
// - Its size is what it was when it was opened.

import CLinux
import CheckpointCore
import Threading
import Units

/// Reads and writes a file or block device on threads of its own.
public final class FileDevice: GuestDevice {
    /// How the system's page cache is dealt with.
    public enum Caching: Sendable {
        /// Past it. Not on every file system.
        case direct
        /// Through it, and each write flushed.
        case writeThrough
    }

    public let name: String
    public let byteLength: ByteCount
    public let blockLength: ByteCount
    private let caching: Caching
    private let file: OwnedDescriptor
    private let queue = Lock(Queue())

    private struct Queue {
        var jobs: [@Sendable () -> Void] = []
        var threads: [PlainThread] = []
        var isClosed = false
    }

    /// Opens it.
    ///
    /// - Parameter threadCount: how many operations go on at the same time.
    /// - Throws: `.notFound`, `.permission`; `.unsupported` where the file system has no direct I/O; `.invalidInput` when it is no file or
    ///   block device, or not a multiple of its block.
    public init(_ name: String, path: String, caching: Caching = .direct, threadCount: Int = 2) throws(EngineError) {
        precondition(threadCount >= 1, "somebody has to work")
        self.name = name
        self.caching = caching
        let flags = UInt32(CK_READ_WRITE.rawValue) | (caching == .direct ? UInt32(CK_DIRECT.rawValue) : 0)
        file = OwnedDescriptor(
            owning: try checked(
                unsafe ck_open(path, flags), "open it", place: path,
                remedy: caching == .direct ? "A file system without direct I/O wants the device to be written through the cache." : ""))
        (byteLength, blockLength) = try Self.geometry(file, path, caching)
        for _ in 0..<threadCount {
            guard let thread = PlainThread({ self.work() }) else {
                close()
                throw EngineError(.noMemory, "can't start a thread that reads and writes", place: path)
            }
            queue.withLock { $0.threads.append(thread) }
        }
    }

    deinit { precondition(queue.withLock { $0.threads.isEmpty }, "a device is closed by its owner") }

    public func read(at offset: DeviceOffset, into buffer: TransferBuffer, completion: @escaping Completion) {
        perform(completion) { () throws(EngineError) in
            let count = unsafe ck_read_at(self.file.number, buffer.bytes.baseAddress!, buffer.bytes.count, offset.rawValue)
            guard try checked(count, "read \(buffer.byteLength) bytes at \(offset)", place: self.name) == Int64(buffer.byteLength.rawValue)
            else {
                throw EngineError(
                    .ioFailed, "it ends at \(offset.rawValue + UInt64(count))", remedy: "It was longer: look for who cut it.",
                    place: self.name)
            }
        }
    }

    public func write(_ id: RequestID, at offset: DeviceOffset, _ buffer: TransferBuffer, completion: @escaping Completion) {
        perform(completion) { () throws(EngineError) in
            var written = 0
            while written < buffer.byteLength.int {
                let rest = unsafe UnsafeRawBufferPointer(rebasing: buffer.bytes[written...])
                let count = unsafe ck_write_at(self.file.number, rest.baseAddress!, rest.count, offset.rawValue + UInt64(written))
                written += Int(try checked(count, "write \(rest.count) bytes at \(offset.rawValue + UInt64(written))", place: self.name))
                guard count > 0 else { throw EngineError(.ioFailed, "it takes no more bytes", remedy: "Replace it.", place: self.name) }
            }
            if self.caching == .writeThrough { try checked(ck_flush_data(self.file.number), "flush what was written", place: self.name) }
        }
    }

    public func flush(completion: @escaping Completion) {
        perform(completion) { () throws(EngineError) in try checked(ck_flush_data(self.file.number), "flush it", place: self.name) }
    }

    /// Ends the threads when everything accepted has completed; later operations fail. Harmless when that was done before.
    public func close() {
        let threads = queue.withLock { queue in
            queue.isClosed = true
            defer { queue.threads = [] }
            return queue.threads
        }
        queue.wake()
        for thread in threads { thread.join() }
        file.close()
    }

    private func perform(_ completion: @escaping Completion, _ operation: @escaping @Sendable () throws(EngineError) -> Void) {
        let isAccepted = queue.withLock { queue in
            guard !queue.isClosed else { return false }
            queue.jobs.append {
                do throws(EngineError) {
                    try operation()
                    completion(.success(()))
                } catch { completion(.failure(error)) }
            }
            return true
        }
        guard isAccepted else { return completion(.failure(EngineError(.ioFailed, "it has been closed", place: name))) }
        queue.wake()
    }

    private func work() {
        while let job = queue.waitFor({ queue -> (@Sendable () -> Void)?? in
            if !queue.jobs.isEmpty { return .some(queue.jobs.removeFirst()) }
            return queue.isClosed ? .some(nil) : nil
        }) { job() }
    }

    private static func geometry(
        _ file: OwnedDescriptor, _ path: String, _ caching: Caching
    ) throws(EngineError) -> (byteLength: ByteCount, blockLength: ByteCount) {
        var status = ck_file_status()
        try checked(unsafe ck_status(file.number, &status), "look at it", place: path)
        var size = status.size
        var block = caching == .direct ? max(ck_direct_alignment(file.number), 512) : 512
        if status.type == CK_BLOCK {
            try checked(unsafe ck_device_size(file.number, &size), "ask for its size", place: path)
            try checked(unsafe ck_device_sector_size(file.number, &block), "ask for the size of its sectors", place: path)
        } else if status.type != CK_REGULAR {
            throw EngineError(.invalidInput, "it is neither a file nor a block device", remedy: "Name one.", place: path)
        }
        guard size > 0, size < 1 << 62, size % UInt64(block) == 0 else {
            throw EngineError(
                .invalidInput, "its \(size) bytes are no multiple of its block of \(block)", remedy: "Give it a size in whole blocks.",
                place: path)
        }
        return (ByteCount(size), ByteCount(UInt64(block)))
    }
}
