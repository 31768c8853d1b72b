// What a region can be restored to.
//
// Invariant: a path is judged, and refused, before any region is restored.

import CheckpointStore
import Glibc
import Units

/// Something that takes the content of a region.
protocol RestoreTarget {
    /// Writes all of `region`.
    func fill(from region: RegionReader, parallelism: Int, progress: Progress) throws
    /// Makes the finished content durable and visible.
    func publish() throws
}

/// Which file a path leads to, however it is written: the inode, or the place for a new one.
struct FileIdentity: Hashable {
    private var device: UInt64 = 0
    private var inode: UInt64 = 0
    private var newName = ""

    init(_ path: String) {
        var status = stat()
        if unsafe stat(path, &status) == 0 {
            // Two nodes of one device are one.
            let isDevice = status.st_mode & S_IFMT == S_IFBLK
            (device, inode) = isDevice ? (UInt64(status.st_rdev), 0) : (UInt64(status.st_dev), UInt64(status.st_ino))
            return
        }
        let start = path.lastIndex(of: "/").map { path.index(after: $0) } ?? path.startIndex
        let directory = path[..<start].isEmpty ? "." : String(path[..<start])
        if unsafe stat(directory, &status) == 0 {
            (device, inode) = (UInt64(status.st_dev), UInt64(status.st_ino))
        }
        newName = String(path[start...])
    }
}

enum RestoreTargets {
    /// The target for what is, or is not, at `path`; `-` is standard output.
    static func make(_ file: RegionFile, length: ByteCount, force: Bool) throws -> any RestoreTarget {
        if file.isStandard { return StreamTarget(descriptor: 1, path: "standard output", region: file.region) }
        var status = stat()
        guard unsafe stat(file.path, &status) == 0 else {
            guard errno == ENOENT else { throw systemError("look at", file.path, region: file.region) }
            return try newFile(file)
        }
        switch status.st_mode & S_IFMT {
        case S_IFDIR: throw systemError("write to", file.path, EISDIR, region: file.region)
        case S_IFBLK: return try DeviceTarget(file, length: length, force: force)
        case S_IFREG:
            guard force else { throw systemError("create", file.path, EEXIST, region: file.region) }
            // A symbolic link stays one: what it leads to is replaced.
            guard let real = unsafe realpath(file.path, nil) else {
                throw systemError("follow", file.path, region: file.region)
            }
            defer { unsafe free(real) }
            return try FileTarget(path: unsafe String(cString: real), region: file.region, replaces: true)
        default:
            let descriptor = unsafe open(file.path, O_WRONLY | O_CLOEXEC)
            guard descriptor >= 0 else { throw systemError("open", file.path, region: file.region) }
            return StreamTarget(descriptor: descriptor, path: file.path, region: file.region)
        }
    }

    private static func newFile(_ file: RegionFile) throws -> FileTarget {
        var status = stat()
        if unsafe lstat(file.path, &status) == 0 {
            throw StoreError(
                .invalidInput, "\(file.path) is a symbolic link that leads nowhere", remedy: "Name the file itself.",
                region: file.region)
        }
        if file.path.hasSuffix("/") { throw systemError("create", file.path, EISDIR, region: file.region) }
        return try FileTarget(path: file.path, region: file.region, replaces: false)
    }
}

/// Standard output, a pipe or a character device: written from front to back.
final class StreamTarget: RestoreTarget {
    private let descriptor: Int32
    private let path: String
    private let region: String

    init(descriptor: Int32, path: String, region: String) {
        self.descriptor = descriptor
        self.path = path
        self.region = region
    }

    deinit { if descriptor > 2 { close(descriptor) } }

    func fill(from region: RegionReader, parallelism: Int, progress: Progress) throws {
        var done: UInt64 = 0
        let end = region.info.byteLength.rawValue
        let batch = SpanBatch(region: region, spans: parallelism)
        while done < end {
            let bytes = unsafe try batch.read(at: done)
            let status = unsafe writeAll(descriptor, bytes)
            if status == EPIPE { throw BrokenPipe() }
            if status != 0 { throw systemError("write to", path, status, region: self.region) }
            done += UInt64(bytes.count)
            progress.update(ByteCount(done))
        }
    }

    /// Has `write` write the content.
    func fill(_ write: (Int32) throws -> Void) throws { try write(descriptor) }

    func publish() {}
}
