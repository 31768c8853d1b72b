// The parser of a migration's return path: what the destination of a postcopy tells its source.
//
// Invariants:
// - Every length is checked against what the message must have before anything of it is read.
// - Pages that are asked for lie within a block that was listed.
// - A bitmap takes the memory that the block's own length calls for, never what the message says.
// - A parser that has thrown is used no more.

import CheckpointCore
import Units

/// One message of the destination.
public enum ReturnPathMessage: Sendable, Equatable {
    /// The destination is done; 0 when it went well.
    case shut(status: UInt32)
    /// The answer to a ping.
    case pong(UInt32)
    /// Somebody waits for these pages.
    case requestPages(block: Int, Range<PageIndex>)
    /// The pages of a block that have arrived: bit i of byte i/8, the least significant first, is page i.
    case receivedPages(block: Int, bitmap: [UInt8])
    /// The answer to `resumePostcopy`: pages may come again. 1 is what QEMU sends.
    case resumed(value: UInt32)
}

/// Parses one return path. A value: use it from one thread at a time.
public struct ReturnPathParser {
    /// A window of as many bytes always makes progress.
    public static let minimumWindowBytes = 1024

    private enum Kind {
        static let shut: UInt16 = 1
        static let pong: UInt16 = 2
        static let requestNamed: UInt16 = 3
        static let request: UInt16 = 4
        static let receivedBitmap: UInt16 = 5
        static let resumed: UInt16 = 6
    }
    private static let bitmapEnd: UInt64 = 0x0123_4567_89ab_cdef

    private enum State {
        case message
        case bitmapSize(block: Int)
        case bitmap(block: Int, missing: Int)
        case bitmapEnd(block: Int)
    }

    private let blocks: [StreamRAMBlock]
    private var state = State.message
    /// The block of the previous request.
    private var requestedBlock: Int?
    private var bitmap: [UInt8] = []
    private var pendingBytes = 0
    private var hasFailed = false

    /// - Parameter blocks: the list that the source has sent, or would have.
    public init(blocks: [StreamRAMBlock]) { self.blocks = blocks }

    /// Parses as many messages as `bytes` has; the caller keeps what was not consumed and gives it again with what follows.
    /// - Returns: how many bytes were consumed.
    /// - Throws: `.protocolViolation`; what `take` throws. The parser is used up then.
    public mutating func feed(
        _ bytes: UnsafeRawBufferPointer, _ take: (ReturnPathMessage) throws(EngineError) -> Void
    ) throws(EngineError) -> Int {
        precondition(!hasFailed, "the parser has failed before")
        hasFailed = true
        var cursor = unsafe FieldCursor(bytes)
        var start = 0
        repeat { start = cursor.position } while try element(&cursor, take)
        pendingBytes = bytes.count - start
        hasFailed = false
        return start
    }

    /// Says that the connection is over.
    /// - Throws: `.protocolViolation` when it broke off within a message.
    public func finish() throws(EngineError) {
        guard case .message = state, pendingBytes == 0 else { throw violation("ends within a message") }
    }

    private mutating func element(
        _ cursor: inout FieldCursor, _ take: (ReturnPathMessage) throws(EngineError) -> Void
    ) throws(EngineError) -> Bool {
        switch state {
        case .message: return try message(&cursor, take)
        case .bitmapSize(let block):
            guard let size = cursor.u64() else { return false }
            let expected = Self.bitmapBytes(blocks[block])
            guard size == UInt64(expected) else {
                throw violation("has a bitmap of \(size) bytes for \(blocks[block].name), not of \(expected)")
            }
            bitmap.reserveCapacity(expected)
            state = .bitmap(block: block, missing: expected)
            return true
        case .bitmap(let block, let missing):
            guard cursor.remaining > 0, let part = unsafe cursor.take(min(missing, cursor.remaining)) else { return false }
            unsafe bitmap.append(contentsOf: part)
            state = part.count < missing ? .bitmap(block: block, missing: missing - part.count) : .bitmapEnd(block: block)
            return true
        case .bitmapEnd(let block):
            guard let end = cursor.u64() else { return false }
            guard end == Self.bitmapEnd else { throw violation("has a bitmap of \(blocks[block].name) without an end") }
            state = .message
            defer { bitmap = [] }
            try take(.receivedPages(block: block, bitmap: bitmap))
            return true
        }
    }

    /// The bitmap's bytes: a bit for each page, filled up to a multiple of 8 bytes.
    private static func bitmapBytes(_ block: StreamRAMBlock) -> Int {
        (PageCount(covering: block.byteLength).int + 63) / 64 * 8
    }

    private mutating func message(
        _ cursor: inout FieldCursor, _ take: (ReturnPathMessage) throws(EngineError) -> Void
    ) throws(EngineError) -> Bool {
        guard let kind = cursor.u16(), let length = cursor.u16() else { return false }
        try checkLength(length, of: kind)
        guard let payload = unsafe cursor.take(Int(length)) else { return false }
        var fields = unsafe FieldCursor(payload)
        switch kind {
        case Kind.shut: try take(.shut(status: try number(&fields)))
        case Kind.pong: try take(.pong(try number(&fields)))
        case Kind.resumed: try take(.resumed(value: try number(&fields)))
        case Kind.receivedBitmap: state = .bitmapSize(block: try block(&fields))
        default:
            guard let offset = fields.u64() else { throw violation("has a request without an offset") }
            let byteLength = try number(&fields)
            if kind == Kind.requestNamed { requestedBlock = try block(&fields) }
            guard let requestedBlock else { throw violation("has a request of the previous request's block, and none before") }
            try take(.requestPages(block: requestedBlock, try pages(of: requestedBlock, offset, byteLength)))
        }
        return true
    }

    private func checkLength(_ length: UInt16, of kind: UInt16) throws(EngineError) {
        let allowed: ClosedRange<UInt16>
        switch kind {
        case Kind.shut, Kind.pong, Kind.resumed: allowed = 4...4
        case Kind.request: allowed = 12...12
        case Kind.requestNamed: allowed = 14...268
        case Kind.receivedBitmap: allowed = 2...256
        default: throw violation("has a message of the unknown type \(kind)")
        }
        guard allowed.contains(length) else { throw violation("has a message of type \(kind) with \(length) bytes") }
    }

    private func number(_ fields: inout FieldCursor) throws(EngineError) -> UInt32 {
        guard let value = fields.u32() else { throw violation("has a message that is too short") }
        return value
    }

    /// The block whose name is the rest of a message.
    private func block(_ fields: inout FieldCursor) throws(EngineError) -> Int {
        guard let text = unsafe fields.countedBytes(), fields.remaining == 0 else {
            throw violation("has a name whose length is not that of its message")
        }
        guard let index = blocks.firstIndex(where: { unsafe $0.name.utf8.elementsEqual(text) }) else {
            throw violation(unsafe "names the RAM block \(String(decoding: text, as: UTF8.self)), which there is not")
        }
        return index
    }

    private func pages(of block: Int, _ offset: UInt64, _ byteLength: UInt32) throws(EngineError) -> Range<PageIndex> {
        let size = UInt64(pageSize)
        let total = blocks[block].byteLength.rawValue
        guard byteLength > 0, offset % size == 0, UInt64(byteLength) % size == 0, UInt64(byteLength) <= total,
            offset <= total - UInt64(byteLength)
        else { throw violation("asks for \(byteLength) bytes at \(offset) of \(blocks[block].name), which has \(total)") }
        return PageIndex(offset / size)..<PageIndex((offset + UInt64(byteLength)) / size)
    }

    private func violation(_ reason: String) -> EngineError {
        EngineError(
            .protocolViolation, "the migration's return path \(reason)",
            remedy: "The other side is no QEMU that this program knows.", place: "return path")
    }
}
