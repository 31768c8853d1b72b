// Restoring to a block device.
//
// Invariant: a device that is too small, or in use, is refused before anything is written to it.

import CheckpointStore
import CLinux
import Glibc
import Units

/// A block device, whose first bytes are replaced.
@safe final class DeviceTarget: RestoreTarget {
    private let path: String
    private let region: String
    private let descriptor: Int32
    private static let zeroBytes = 1 << 20

    init(_ file: RegionFile, length: ByteCount, force: Bool) throws(StoreError) {
        path = file.path
        region = file.region
        guard force else {
            throw StoreError(
                .exists, "\(file.path) is a block device", remedy: "Use --force to overwrite what is on it.",
                region: file.region)
        }
        descriptor = unsafe ck_open(file.path, CK_READ_WRITE.rawValue | CK_CLAIM.rawValue)
        guard descriptor >= 0 else { throw systemError("open", path, -descriptor, region: region) }
        var size: UInt64 = 0
        let status = unsafe ck_device_size(descriptor, &size)
        guard status >= 0 else { throw systemError("ask for the size of", path, -status, region: region) }
        guard size >= length.rawValue else {
            throw StoreError(
                .noSpace, "\(path) has \(size) bytes, the region has \(length)", remedy: "Use a larger device.",
                region: region)
        }
    }

    deinit { if descriptor >= 0 { close(descriptor) } }

    func fill(from region: RegionReader, parallelism: Int, progress: Progress) throws {
        try writeZeros(region)
        try writeData(of: region, to: descriptor, path: path, parallelism: parallelism, progress: progress)
    }

    /// Zero pages have to be written: nobody knows what is there.
    private func writeZeros(_ region: RegionReader) throws(StoreError) {
        let zeros = UnsafeMutableRawBufferPointer.allocate(byteCount: Self.zeroBytes, alignment: pageSize)
        defer { unsafe zeros.deallocate() }
        unsafe zeros.initializeMemory(as: UInt8.self, repeating: 0)
        let end = region.info.byteLength.rawValue
        var position: UInt64 = 0
        for data in try region.dataRanges() {
            try unsafe fill(position..<data.lowerBound.rawValue * UInt64(pageSize), zeros)
            position = min(data.upperBound.rawValue * UInt64(pageSize), end)
        }
        try unsafe fill(position..<end, zeros)
    }

    private func fill(_ range: Range<UInt64>, _ zeros: UnsafeMutableRawBufferPointer) throws(StoreError) {
        var position = range.lowerBound
        while position < range.upperBound {
            let count = Int(min(range.upperBound - position, UInt64(zeros.count)))
            let status = unsafe writeAll(descriptor, UnsafeRawBufferPointer(rebasing: zeros[0..<count]), at: position)
            guard status == 0 else { throw systemError("write to", path, status, region: region) }
            position += UInt64(count)
        }
    }

    func publish() throws {
        let status = ck_flush_all(descriptor)
        guard status == 0 else { throw systemError("flush", path, -status, region: region) }
    }
}
