// Reading a region from front to back, several spans at once.

import CheckpointStore
import Dispatch
import Glibc
import Synchronization
import Units

/// A buffer that takes consecutive spans, each read by a thread of its own.
@safe final class SpanBatch {
    private let region: RegionReader
    private let spans: Int
    private let buffer: UnsafeMutableRawBufferPointer
    private static let spanBytes = pagesPerSpan * pageSize

    init(region: RegionReader, spans: Int) {
        self.region = region
        self.spans = spans
        unsafe buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: spans * Self.spanBytes, alignment: pageSize)
    }

    deinit { unsafe buffer.deallocate() }

    /// Which thread writes where: each to a slice of its own.
    @safe private struct Slices: @unchecked Sendable {
        let buffer: UnsafeMutableRawBufferPointer
        func slice(_ number: Int, of length: Int) -> UnsafeMutableRawBufferPointer {
            let low = number * SpanBatch.spanBytes
            return unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[low..<min(low + SpanBatch.spanBytes, length)])
        }
    }

    /// The bytes from `offset` on, as many as fit; valid until the next call.
    func read(at offset: UInt64) throws(StoreError) -> UnsafeRawBufferPointer {
        let length = Int(min(region.info.byteLength.rawValue - offset, UInt64(spans * Self.spanBytes)))
        let slices = unsafe Slices(buffer: buffer)
        let failure = Mutex<StoreError?>(nil)
        let region = region
        DispatchQueue.concurrentPerform(iterations: (length + Self.spanBytes - 1) / Self.spanBytes) { number in
            let place = ByteCount(offset + UInt64(number * Self.spanBytes))
            do throws(StoreError) { unsafe try region.read(at: place, into: slices.slice(number, of: length)) } catch {
                failure.withLock { $0 = $0 ?? error }
            }
        }
        if let error = failure.withLock({ $0 }) { throw error }
        return unsafe UnsafeRawBufferPointer(rebasing: buffer[0..<length])
    }
}
