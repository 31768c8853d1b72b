// The files that regions are saved from: opened and judged before anything is written.
//
// Invariant: an input that can't become a region is refused before the checkpoint is begun.

import CheckpointStore
import CLinux
import Glibc
import StoreFormat
import Units

/// Something open that a region is saved from.
final class InputFile {
    let region: String
    let kind: RegionKind
    /// The path, for messages.
    let path: String
    private let descriptor: Int32
    private let isStandard: Bool
    /// nil: a stream, which ends when it ends.
    let byteLength: ByteCount?

    /// Opens `file`, or takes standard input for '-'.
    init(_ file: RegionFile, kind: RegionKind) throws(StoreError) {
        region = file.region
        self.kind = kind
        path = file.isStandard ? "standard input" : file.path
        isStandard = file.isStandard
        descriptor = file.isStandard ? 0 : unsafe open(file.path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemError("open", path, region: region) }
        byteLength = try Self.length(descriptor, path: path, region: region)
        if kind == .memory, let byteLength { try checkMemory(byteLength) }
    }

    deinit { if !isStandard, descriptor >= 0 { close(descriptor) } }

    /// How long a file or device is; nil for what has no length of its own.
    private static func length(_ descriptor: Int32, path: String, region: String) throws(StoreError) -> ByteCount? {
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else { throw systemError("look at", path, region: region) }
        switch status.st_mode & S_IFMT {
        case S_IFDIR: throw systemError("read", path, EISDIR, region: region)
        case S_IFREG:
            // A standard input that was read in part goes on from there, as a stream.
            return lseek(descriptor, 0, SEEK_CUR) == 0 ? ByteCount(UInt64(max(0, status.st_size))) : nil
        case S_IFBLK:
            var size: UInt64 = 0
            let result = unsafe ck_device_size(descriptor, &size)
            guard result >= 0 else { throw systemError("ask for the size of", path, -result, region: region) }
            return ByteCount(size)
        default: return nil
        }
    }

    private func checkMemory(_ length: ByteCount) throws(StoreError) {
        guard length.rawValue % UInt64(pageSize) != 0 else { return }
        throw StoreError(
            .invalidInput, "\(path) has \(length) bytes, no multiple of the page of \(pageSize) bytes",
            remedy: "Pad the image, or save it with --disk or --state, which may have any length.", region: region)
    }

    /// Puts all of it into the region that it is for.
    func save(to writer: CheckpointWriter) throws(StoreError) {
        let target = try writer.addRegion(region, kind: kind, byteLength: byteLength)
        if let byteLength {
            try target.write(file: descriptor, byteLength: byteLength)
        } else {
            // Nothing wakes a read that waits for input, so a signal ends the process: nothing is committed yet.
            Interruption.setCancel(nil)
            defer { Interruption.setCancel { writer.cancel() } }
            try target.write(stream: descriptor)
        }
    }
}
