// Reading an export of QEMU's NBD server.
//
// Invariants:
// - One reader is used by one thread at a time.
// - What is not reported as zero is data: missing or unknown allocation costs reading, never content.

import CNBD
import CheckpointCore
import QMP
import Units

/// A connection to one export.
@safe final class ExportReader {
    private static let allocation = "base:allocation"
    private let handle: OpaquePointer
    private let dirtyContext: String?
    let byteLength: ByteCount

    /// Connects.
    /// - Parameters:
    ///   - socket: in this process's view.
    ///   - bitmap: a dirty bitmap that the export must have; nil: none is wanted.
    init(socket: String, export: String, bitmap: String?) throws(EngineError) {
        guard let handle = unsafe nbd_create() else { throw Self.failure("prepare to read the disk", export) }
        unsafe self.handle = unsafe handle
        dirtyContext = bitmap.map { "qemu:dirty-bitmap:" + $0 }
        do throws(EngineError) {
            guard unsafe nbd_set_export_name(handle, export) == 0, unsafe nbd_add_meta_context(handle, Self.allocation) == 0,
                dirtyContext.map({ unsafe nbd_add_meta_context(handle, $0) == 0 }) ?? true,
                unsafe nbd_connect_unix(handle, socket) == 0
            else { throw Self.failure("connect to QEMU's NBD server", export) }
            for context in [Self.allocation] + (dirtyContext.map { [$0] } ?? []) where unsafe nbd_can_meta_context(handle, context) != 1 {
                throw EngineError(.protocolViolation, "the export does not tell \(context)", place: export)
            }
            let size = unsafe nbd_get_size(handle)
            guard size >= 0 else { throw Self.failure("learn the disk's size", export) }
            byteLength = ByteCount(UInt64(size))
        } catch {
            unsafe nbd_close(handle)
            throw error
        }
    }

    deinit {
        // Says goodbye; a server that is gone needs none.
        unsafe nbd_shutdown(handle, 0)
        unsafe nbd_close(handle)
    }

    func read(into buffer: UnsafeMutableRawBufferPointer, at offset: UInt64) throws(EngineError) {
        guard unsafe nbd_pread(handle, buffer.baseAddress!, buffer.count, offset, 0) == 0 else {
            throw Self.failure("read the disk at byte \(offset)", "")
        }
    }

    /// What a range of bytes holds.
    struct Extents {
        /// Ranges that may be other than zero.
        var data: [Range<UInt64>] = []
        /// Ranges that the bitmap has.
        var dirty: [Range<UInt64>] = []
        fileprivate var allocationEnd: UInt64
        fileprivate var dirtyEnd: UInt64
        fileprivate var isWrong = false

        fileprivate init(from start: UInt64) {
            allocationEnd = start
            dirtyEnd = start
        }
    }

    /// What the bytes of `range` hold, as ranges that together reach at least to its end.
    func extents(of range: Range<UInt64>) throws(EngineError) -> Extents {
        let query = Query(Extents(from: range.lowerBound), hasDirty: dirtyContext != nil)
        while query.end < range.upperBound {
            let start = query.end
            var callback = unsafe nbd_extent_callback()
            unsafe callback.user_data = Unmanaged.passUnretained(query).toOpaque()
            unsafe callback.callback = { user, context, offset, entries, count, _ in
                let query = unsafe Unmanaged<Query>.fromOpaque(user!).takeUnretainedValue()
                unsafe query.add(
                    isAllocation: String(cString: context!) == ExportReader.allocation, offset: offset,
                    entries: UnsafeBufferPointer(start: entries, count: count))
                return 0
            }
            guard unsafe nbd_block_status(handle, range.upperBound - start, start, callback, 0) == 0 else {
                throw Self.failure("ask what is allocated at byte \(start)", "")
            }
            guard !query.extents.isWrong, query.end > start else {
                throw EngineError(.protocolViolation, "QEMU's NBD server does not tell what is allocated at byte \(start)")
            }
        }
        return query.extents
    }

    /// The answers to one question, as they come in.
    private final class Query {
        var extents: Extents
        private let hasDirty: Bool

        init(_ extents: Extents, hasDirty: Bool) {
            self.extents = extents
            self.hasDirty = hasDirty
        }

        /// Up to where everything is known.
        var end: UInt64 { hasDirty ? min(extents.allocationEnd, extents.dirtyEnd) : extents.allocationEnd }

        /// - Parameter entries: pairs of length and flags. Allocation: 1 hole, 2 zero. Bitmap: 1 dirty.
        func add(isAllocation: Bool, offset: UInt64, entries: UnsafeBufferPointer<UInt32>) {
            var start = offset
            for index in stride(from: 0, to: entries.count - 1, by: 2) {
                let (length, flags) = unsafe (UInt64(entries[index]), entries[index + 1])
                let range = start..<start + length
                if isAllocation {
                    if flags & 2 == 0 { extents.data.append(range) }
                } else if flags & 1 != 0 {
                    extents.dirty.append(range)
                }
                start += length
            }
            // An answer may tell again what an earlier one has told, but never leaves a gap.
            let known = isAllocation ? extents.allocationEnd : extents.dirtyEnd
            if offset > known { extents.isWrong = true }
            if isAllocation { extents.allocationEnd = max(known, start) } else { extents.dirtyEnd = max(known, start) }
        }
    }

    private static func failure(_ what: String, _ export: String) -> EngineError {
        let text = unsafe nbd_get_error().map { unsafe String(cString: $0) } ?? "no reason given"
        return EngineError(.ioFailed, "can't \(what): \(text)", remedy: "The guest is not affected. Take the checkpoint again.", place: export)
    }
}
