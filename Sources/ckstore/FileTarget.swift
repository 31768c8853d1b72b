// Restoring to a regular file.
//
// Invariants:
// - The file gets its name when its content is complete and durable; until then it has none, or a
//   temporary one where the file system knows no nameless files.
// - Zero pages become holes.

import CheckpointStore
import CLinux
import Glibc
import Units

/// A new file, or one that replaces another. One that is not published leaves nothing.
final class FileTarget: RestoreTarget {
    private let path: String
    private let temporaryPath: String
    private let directory: String
    private let region: String
    private let replaces: Bool
    private let descriptor: Int32
    private var isNamed: Bool

    /// - Parameter replaces: whether a file of that name may be there.
    init(path: String, region: String, replaces: Bool) throws(StoreError) {
        self.path = path
        self.region = region
        self.replaces = replaces
        let end = path.lastIndex(of: "/")
        let prefix = end.map { String(path[...$0]) } ?? ""
        let directory = prefix.isEmpty ? "." : prefix
        let temporary = prefix + ".ckstore-" + String(UInt64.random(in: .min ... .max), radix: 36)
        self.directory = directory
        temporaryPath = temporary
        var number = unsafe ck_open(directory, CK_TEMPORARY.rawValue)
        isNamed = [-EOPNOTSUPP, -EISDIR, -EINVAL].contains(number)
        if isNamed {
            number = Interruption.makeTemporaryFile(temporary) { unsafe ck_open(temporary, CK_READ_WRITE.rawValue | CK_CREATE.rawValue) }
        }
        descriptor = number
        guard number >= 0 else {
            isNamed = false
            throw systemError("create", path, -number, region: region)
        }
    }

    deinit {
        if isNamed { removeName() }
        if descriptor >= 0 { close(descriptor) }
    }

    func fill(from region: RegionReader, parallelism: Int, progress: Progress) throws {
        let length = region.info.byteLength
        let status = ck_set_size(descriptor, length.rawValue)
        guard status == 0 else { throw systemError("set the size of", path, -status, region: self.region) }
        try writeData(of: region, to: descriptor, path: path, parallelism: parallelism, progress: progress)
    }

    /// Has `write` write the content, to a file that is empty, or of `length` bytes that are all zero.
    func fill(length: ByteCount? = nil, _ write: (Int32) throws -> Void) throws {
        if let length {
            let status = ck_set_size(descriptor, length.rawValue)
            guard status == 0 else { throw systemError("set the size of", path, -status) }
        }
        try write(descriptor)
    }

    func publish() throws {
        let status = ck_flush_all(descriptor)
        guard status == 0 else { throw systemError("flush", path, -status, region: region) }
        guard (replaces ? replace() : create()) == 0 else { throw systemError("create", path, region: region) }
        try flushDirectory()
    }

    /// Gives the file a temporary name and moves it over the old one. Returns 0, or -1 with `errno`.
    private func replace() -> Int32 {
        if !isNamed {
            let status = Interruption.makeTemporaryFile(temporaryPath) { link(to: temporaryPath) }
            guard status == 0 else { return status }
            isNamed = true
        }
        guard unsafe rename(temporaryPath, path) == 0 else { return -1 }
        isNamed = false
        Interruption.forgetTemporaryFile(temporaryPath)
        return 0
    }

    /// Gives the file its name unless something else has that. Returns 0, or -1 with `errno`.
    private func create() -> Int32 {
        if link(to: path) == 0 { return 0 }
        // Not every file system has links: look first there.
        guard isNamed, [EPERM, EOPNOTSUPP, ENOSYS].contains(errno) else { return -1 }
        var other = stat()
        guard unsafe lstat(path, &other) != 0 else {
            errno = EEXIST
            return -1
        }
        return replace()
    }

    /// One more name for the file, which nothing else may have.
    private func link(to name: String) -> Int32 {
        let source = isNamed ? temporaryPath : "/proc/self/fd/\(descriptor)"
        return unsafe linkat(AT_FDCWD, source, AT_FDCWD, name, AT_SYMLINK_FOLLOW)
    }

    private func flushDirectory() throws(StoreError) {
        let number = unsafe ck_open(directory, 0)
        guard number >= 0 else { throw systemError("open", directory, -number, region: region) }
        defer { close(number) }
        let status = ck_flush_all(number)
        guard status == 0 else { throw systemError("flush", directory, -status, region: region) }
    }

    private func removeName() {
        unsafe unlink(temporaryPath)
        Interruption.forgetTemporaryFile(temporaryPath)
    }
}

/// Writes the pages of `region` that are not zero to their places, from several threads.
func writeData(
    of region: RegionReader, to descriptor: Int32, path: String, parallelism: Int, progress: Progress
) throws(StoreError) {
    let (length, name) = (region.info.byteLength.rawValue, region.info.name)
    let report: @Sendable (PageCount) -> Void = { done in progress.update(ByteCount(min(done.bytes.rawValue, length))) }
    unsafe try region.forEachSpanOfData(parallelism: parallelism, progress: report) {
        (first, ranges, bytes) throws(StoreError) in
        for pages in ranges {
            let start = (first + PageCount(pages.lowerBound)).rawValue * UInt64(pageSize)
            let count = min(UInt64(pages.count * pageSize), length - start)
            let low = pages.lowerBound * pageSize
            let piece = unsafe UnsafeRawBufferPointer(rebasing: bytes[low..<low + Int(count)])
            let status = unsafe writeAll(descriptor, piece, at: start)
            guard status == 0 else { throw systemError("write to", path, status, region: name) }
        }
    }
}
