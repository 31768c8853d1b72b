// What a copy-on-write file stands on: a real file, or in tests a medium that fails and loses power.
//
// Invariants:
// - A write that has returned is seen by every read; it is durable when a flush that began after it has returned.
// - A failed flush says nothing about any earlier write.

import CLinux
import CheckpointCore
import Glibc
import Units

/// Bytes that can be read, written and flushed. Thread-safe; overlapping writes are their caller's mistake.
public protocol CowStorage: Sendable {
    /// For messages: a path.
    var name: String { get }
    /// Reads until the buffer is full or the end is reached; returns how many bytes.
    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Int
    /// Writes all of `bytes`, beyond the end as well. Not durable until `flush` returns.
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(EngineError)
    /// Makes everything that was written before durable.
    func flush() throws(EngineError)
    /// Deletes it, durably; who has it open can go on using it.
    func remove() throws(EngineError)
}

extension CowStorage {
    /// Writes zeros where nothing has been written yet, so that there is room for what is written there later.
    /// - Throws: `.noSpace`; nothing that counts has changed then.
    func provide(_ start: MediumOffset, bytes: Int) throws(EngineError) {
        let zeros = PrivateBytes(bytes)
        unsafe try write(at: start, UnsafeRawBufferPointer(zeros.bytes))
    }
}

/// A file on any file system, of one user at a time: a recovery can't meet a machine that is still at work on it.
final class CowFileStorage: CowStorage {
    let name: String
    private let file: OwnedDescriptor
    private let lock: FileLock

    /// Creates it, mode 0600; its entry in the directory is durable on return.
    /// - Throws: `.busy` when there is such a file already; `.notFound`, `.permission`, `.noSpace`, `.ioFailed`.
    init(creating path: String) throws(EngineError) {
        name = path
        let result = unsafe ck_open(path, UInt32(CK_READ_WRITE.rawValue | CK_CREATE.rawValue))
        guard result != -EEXIST else {
            throw EngineError(
                .busy, "there is such a file already", remedy: "Recover it into its disk if a machine left it behind, or choose another path.",
                place: path)
        }
        file = OwnedDescriptor(owning: try checked(result, "create the copy-on-write file", place: path))
        do throws(EngineError) {
            lock = try FileLock(path)
            try Self.flushDirectory(of: path)
        } catch {
            _ = unsafe ck_remove(path)
            throw error
        }
    }

    /// Opens it for reading and writing.
    /// - Throws: `.notFound`; `.busy` when somebody has it open; `.permission`, `.ioFailed`.
    init(opening path: String) throws(EngineError) {
        name = path
        let number = unsafe ck_open(path, UInt32(CK_READ_WRITE.rawValue))
        file = OwnedDescriptor(owning: try checked(number, "open the copy-on-write file", place: path))
        lock = try FileLock(path)
    }

    private static func flushDirectory(of path: String) throws(EngineError) {
        let end = path.utf8.lastIndex(of: UInt8(ascii: "/"))
        let directory = end.map { $0 == path.startIndex ? "/" : String(path[..<$0]) } ?? "."
        let descriptor = OwnedDescriptor(owning: try checked(unsafe ck_open(directory, 0), "open the directory", place: directory))
        try checked(ck_flush_all(descriptor.number), "make a directory durable", place: directory)
    }

    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) -> Int {
        Int(try checked(unsafe ck_read_at(file.number, buffer.baseAddress, buffer.count, offset.rawValue), "read", place: name))
    }

    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try unsafe writeAll(file.number, bytes, at: offset.rawValue, place: name)
    }

    func flush() throws(EngineError) { try checked(ck_flush_data(file.number), "make writes durable", place: name) }

    func remove() throws(EngineError) {
        try checked(unsafe ck_remove(name), "remove the copy-on-write file", place: name)
        try Self.flushDirectory(of: name)
    }
}

/// An exclusive lock on a file, gone with this object or its process.
final class FileLock: Sendable {
    private let number: Int32

    init(_ path: String) throws(EngineError) {
        number = try checked(unsafe ck_lock_open(path, true), "open the file for locking", place: path)
        let result = ck_lock_set(number, CK_LOCK_EXCLUSIVE, 0, 1, false)
        guard result == 0 else {
            ck_lock_close(number)
            guard result == -EAGAIN else { throw EngineError(system: "lock the file", -result, place: path) }
            throw EngineError(
                .busy, "somebody else has the file open", remedy: "End the machine or the recovery that uses it first.", place: path)
        }
    }

    deinit { ck_lock_close(number) }
}

/// Writes all of `bytes`, in as many writes as it takes.
func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64, place: String) throws(EngineError) {
    var done = 0
    while done < bytes.count {
        let count = try checked(
            unsafe ck_write_at(descriptor, bytes.baseAddress! + done, bytes.count - done, offset + UInt64(done)), "write", place: place,
            remedy: "Make room, or look after the device.")
        guard count > 0 else { throw EngineError(.ioFailed, "the system writes nothing", place: place) }
        done += Int(count)
    }
}
