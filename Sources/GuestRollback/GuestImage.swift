// What a saved checkpoint of a guest has besides the memory: processors, read-only pages, requests with their buffers.
//
// The blob "guest", little-endian: the letters "CKGUEST" and a zero; version (u32, 1); the number of pages of the memory (u64); the number of
// processors (u32), and for each its state: length (u64), bytes; the number of ranges of really read-only pages (u32), and for each: first
// page, number of pages (u64 each); the number of requests (u32), and for each, in the order of their issue: id, device, offset, length,
// address, processor (u64 each), operation (u8: 1 read, 2 write, 3 flush), status (u8: 0 unfinished, 1 done, 2 device failed, 3 read-only
// target), the page of status 3 (u64), the length of the text of status 2 (u32) and the text, whether a buffer follows (u8), and the buffer,
// as long as the request.
//
// Invariants:
// - Every length is checked against the bytes that are there before anything is allocated for it.
// - A read that is done has its buffer; a write that is not done has its buffer; nothing else has one.

import CheckpointCore
import StoreFormat
import Units

/// The state of a guest at its checkpoint, without its memory.
struct GuestImage {
    struct SavedRequest {
        var request: GuestRequest
        /// nil: unfinished.
        var status: RequestCompletion.Status?
        var buffer: TransferBuffer?
    }

    static let regionName = "guest"
    static let magic = Array("CKGUEST\0".utf8)
    static let version: UInt32 = 1
    /// More than the states and buffers of any guest.
    static let limit = ByteCount.gibibytes(1)

    var memoryPages: PageCount
    var states: [[UInt8]]
    var readOnlyPages: PageRanges
    var requests: [SavedRequest]

    // MARK: To bytes

    func encoded() -> [UInt8] {
        var bytes = Self.magic
        bytes.put(Self.version)
        bytes.put(memoryPages.rawValue)
        bytes.put(UInt32(states.count))
        for state in states {
            bytes.put(UInt64(state.count))
            bytes += state
        }
        bytes.put(UInt32(readOnlyPages.ranges.count))
        for range in readOnlyPages.ranges {
            bytes.put(range.lowerBound.rawValue)
            bytes.put((range.upperBound - range.lowerBound).rawValue)
        }
        bytes.put(UInt32(requests.count))
        for saved in requests { Self.encode(saved, into: &bytes) }
        return bytes
    }

    private static func encode(_ saved: SavedRequest, into bytes: inout [UInt8]) {
        let request = saved.request
        for field in [
            request.id.rawValue, request.device.rawValue, request.offset.rawValue, request.byteLength.rawValue, request.address.rawValue,
            request.processor.rawValue,
        ] { bytes.put(field) }
        bytes.append(request.operation.rawValue)
        var page: UInt64 = 0
        var text = ""
        switch saved.status {
        case nil: bytes.append(0)
        case .done: bytes.append(1)
        case .deviceFailed(let reason):
            bytes.append(2)
            text = reason
        case .readOnlyTarget(let target):
            bytes.append(3)
            page = target.rawValue
        }
        bytes.put(page)
        bytes.put(UInt32(text.utf8.count))
        bytes += Array(text.utf8)
        bytes.append(saved.buffer == nil ? 0 : 1)
        if let buffer = saved.buffer { unsafe bytes.append(contentsOf: buffer.bytes) }
    }

    // MARK: From bytes

    /// - Throws: `.corrupt` for bytes that `encoded` never makes; `.unsupported` for a newer version.
    init(_ bytes: [UInt8]) throws(EngineError) {
        var reader = ImageReader(bytes)
        guard try reader.bytes(Self.magic.count) == Self.magic else { throw ImageReader.corrupt("it does not begin with its mark") }
        let version = try reader.u32()
        guard version == Self.version else {
            throw EngineError(.unsupported, "version \(version) of a guest's state", remedy: "Use a newer ckstore.", place: Self.regionName)
        }
        memoryPages = PageCount(try reader.u64())
        states = []
        for _ in 0..<(try reader.count(ofAtLeast: 8)) { states.append(try reader.bytes(try reader.length())) }
        var ranges: [Range<PageIndex>] = []
        for _ in 0..<(try reader.count(ofAtLeast: 16)) {
            let (first, count) = (try reader.u64(), try reader.u64())
            guard first <= memoryPages.rawValue, count <= memoryPages.rawValue - first else {
                throw ImageReader.corrupt("read-only pages beyond the memory")
            }
            ranges.append(PageIndex(first)..<PageIndex(first + count))
        }
        readOnlyPages = PageRanges(ranges)
        requests = []
        for _ in 0..<(try reader.count(ofAtLeast: 63)) { requests.append(try Self.decode(&reader)) }
        guard reader.isAtEnd else { throw ImageReader.corrupt("bytes behind its end") }
    }

    init(memoryPages: PageCount, states: [[UInt8]], readOnlyPages: PageRanges, requests: [SavedRequest]) {
        self.memoryPages = memoryPages
        self.states = states
        self.readOnlyPages = readOnlyPages
        self.requests = requests
    }

    private static func decode(_ reader: inout ImageReader) throws(EngineError) -> SavedRequest {
        let (id, device, offset, length) = (try reader.u64(), try reader.u64(), try reader.u64(), try reader.u64())
        let (address, processor) = (try reader.u64(), try reader.u64())
        guard let operation = GuestRequest.Operation(rawValue: try reader.u8()) else { throw ImageReader.corrupt("an unknown operation") }
        let kind = try reader.u8()
        let page = PageIndex(try reader.u64())
        let text = String(decoding: try reader.bytes(Int(try reader.u32())), as: UTF8.self)
        let status: RequestCompletion.Status?
        switch kind {
        case 0: status = nil
        case 1: status = .done
        case 2: status = .deviceFailed(text)
        case 3: status = .readOnlyTarget(page)
        default: throw ImageReader.corrupt("an unknown status")
        }
        let request = GuestRequest(
            id: RequestID(id), operation, device: DeviceIndex(device), offset: DeviceOffset(offset), byteLength: ByteCount(length),
            address: GuestAddress(address), processor: ProcessorIndex(processor))
        let needsBuffer = operation == .read && status == .done || operation == .write && status == nil
        guard try reader.u8() == (needsBuffer ? 1 : 0) else { throw ImageReader.corrupt("a buffer too many or too few") }
        return SavedRequest(request: request, status: status, buffer: needsBuffer ? try reader.buffer(length) : nil)
    }
}

/// Reads the fields of a guest's image.
private struct ImageReader {
    private let all: [UInt8]
    private var position = 0

    init(_ bytes: [UInt8]) { all = bytes }

    var isAtEnd: Bool { position == all.count }

    static func corrupt(_ reason: String) -> EngineError {
        EngineError(
            .corrupt, reason, remedy: "The checkpoint was not made by ckstore, or not by this version of it.", place: GuestImage.regionName)
    }

    private mutating func take(_ count: Int) throws(EngineError) -> Range<Int> {
        guard count >= 0, count <= all.count - position else { throw Self.corrupt("it ends too early") }
        defer { position += count }
        return position..<position + count
    }

    private mutating func integer<T: FixedWidthInteger>(_ type: T.Type) throws(EngineError) -> T {
        all[try take(MemoryLayout<T>.size)].reversed().reduce(T(0)) { $0 << 8 | T(truncatingIfNeeded: $1) }
    }

    mutating func u8() throws(EngineError) -> UInt8 { all[try take(1).lowerBound] }
    mutating func u32() throws(EngineError) -> UInt32 { try integer(UInt32.self) }
    mutating func u64() throws(EngineError) -> UInt64 { try integer(UInt64.self) }
    mutating func bytes(_ count: Int) throws(EngineError) -> [UInt8] { Array(all[try take(count)]) }

    /// How many things follow that take at least `size` bytes each.
    mutating func count(ofAtLeast size: Int) throws(EngineError) -> Int {
        let count = Int(try u32())
        guard count <= (all.count - position) / size else { throw Self.corrupt("it ends too early") }
        return count
    }

    /// A length of bytes that follow.
    mutating func length() throws(EngineError) -> Int {
        let length = try u64()
        guard length <= UInt64(all.count) else { throw Self.corrupt("it ends too early") }
        return Int(length)
    }

    mutating func buffer(_ length: UInt64) throws(EngineError) -> TransferBuffer {
        guard length > 0, length <= UInt64(all.count) else { throw Self.corrupt("it ends too early") }
        let range = try take(Int(length))
        let buffer = TransferBuffer(byteLength: ByteCount(length))
        unsafe buffer.bytes.copyBytes(from: all[range])
        return buffer
    }
}

extension [UInt8] {
    /// Appends a number, lowest byte first.
    fileprivate mutating func put<T: FixedWidthInteger>(_ value: T) {
        for byte in 0..<MemoryLayout<T>.size { append(UInt8(truncatingIfNeeded: value >> (8 * byte))) }
    }
}
