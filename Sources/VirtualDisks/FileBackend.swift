// A disk image that is a file or a block device.
//
// Invariants:
// - Bytes go between the file and the machine's memory directly, past its write protection: like the DMA of a device.
// - A failed flush is final: the system may have dropped what it could not write, and a later flush would not know of it.

import CLinux
import CheckpointCore
import Threading
import Units

/// An image in a regular file or on a block device.
public final class FileBackend: DiskBackend {
    public let name: String
    public let byteLength: ByteCount
    private let file: OwnedDescriptor
    private let workers: any DiskWorkers
    private let flushFailure = Lock<EngineError?>(nil)

    /// Opens it for reading and writing.
    ///
    /// - Parameter workers: do the blocking calls; as many threads as requests shall be under way at once.
    /// - Throws: `.notFound`, `.permission`; `.invalidInput` when it is neither a file nor a block device, or no whole number of sectors long;
    ///   `.ioFailed`.
    public init(_ path: String, workers: any DiskWorkers) throws(EngineError) {
        name = path
        self.workers = workers
        let file = OwnedDescriptor(owning: try checked(unsafe ck_open(path, UInt32(CK_READ_WRITE.rawValue)), "open the disk image", place: path))
        self.file = file
        var status = ck_file_status()
        try checked(unsafe ck_status(file.number, &status), "look at the disk image", place: path)
        var size = status.size
        switch status.type {
        case CK_REGULAR: break
        case CK_BLOCK: try checked(unsafe ck_device_size(file.number, &size), "ask for the device's size", place: path)
        default: throw EngineError(.invalidInput, "neither a file nor a block device", remedy: "Give the disk an image.", place: path)
        }
        byteLength = ByteCount(size)
        do throws(EngineError) { _ = try DiskGeometry(diskLength: byteLength) } catch {
            var error = error
            error.place = path
            throw error
        }
    }

    public func read(at offset: DiskOffset, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        perform(completion) { backend throws(EngineError) in
            let count = try checked(
                unsafe ck_read_at(backend.file.number, bytes.bytes.baseAddress, bytes.bytes.count, offset.rawValue), "read", place: backend.name,
                remedy: "Look after the device.")
            guard unsafe count == bytes.bytes.count else {
                throw EngineError(
                    .ioFailed, "the image ends at byte \(offset.rawValue + UInt64(count))",
                    remedy: "Somebody has truncated it: bring it back from a checkpoint.", place: backend.name)
            }
        }
    }

    public func write(at offset: DiskOffset, from bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        perform(completion) { backend throws(EngineError) in
            unsafe try writeAll(backend.file.number, UnsafeRawBufferPointer(bytes.bytes), at: offset.rawValue, place: backend.name)
        }
    }

    public func flush(_ completion: @escaping DiskCompletion) {
        perform(completion) { backend throws(EngineError) in
            if let failure = backend.flushFailure.withLock({ $0 }) { throw failure }
            do throws(EngineError) { try checked(ck_flush_data(backend.file.number), "make writes durable", place: backend.name) } catch {
                let failure = error
                backend.flushFailure.withLock { $0 = failure }
                throw failure
            }
        }
    }

    private func perform(_ completion: @escaping DiskCompletion, _ body: @escaping @Sendable (FileBackend) throws(EngineError) -> Void) {
        workers.run {
            do throws(EngineError) {
                try body(self)
                completion(.success(()))
            } catch { completion(.failure(error)) }
        }
    }
}
