// The frames of a stream: Formats/STREAM.md 2 and 3.
//
// Invariants:
// - A frame's length is checked before anything is allocated for it, under a checksum of the header alone.
// - A frame's chain value covers everything in front of it, so that a frame can't be changed, dropped, swapped or doubled unnoticed.

import CheckpointStore
import PageCodec
import StoreFormat
import Units

/// The identity of one stream: random.
public struct StreamID: Quantity {
    public var rawValue: UInt64
    public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// 16 hexadecimal digits.
    public var description: String { hexadecimal(rawValue) }
}

/// What a stream begins with: what it is, and its version.
enum Preamble {
    static let magic: [UInt8] = [0x43, 0x4B, 0x53, 0x54, 0x52, 0x4D, 0x31, 0]  // "CKSTRM1", zero
    static let version: UInt32 = 1
    static let byteCount = 32

    static func encoded(version: UInt32 = Preamble.version) -> [UInt8] {
        var writer = ByteWriter(length: byteCount)
        writer.put(magic)
        writer.put(version)
        writer.put(UInt32(0))
        unsafe writer.put(hash128(writer.bytes.span.bytes))
        return writer.bytes
    }

    /// The value that the chain of frames starts with.
    /// - Throws: `.notAStream`, `.damagedStream`, `.unsupported` for a version that this program does not know.
    static func check(_ bytes: [UInt8]) throws(StoreError) -> Hash128 {
        guard bytes.starts(with: magic) else {
            throw StoreError(.notAStream, "what came is no stream of checkpoints", remedy: "Make one with `ckstore send`.")
        }
        let span = unsafe bytes.span.bytes
        let checksum = span.hash(16)
        guard hash128(span.extracting(0..<16)) == checksum else { throw .damagedStream("its first bytes are not what was sent") }
        guard span.u32(8) == version else {
            throw StoreError(
                .unsupported, "the stream has version \(span.u32(8)), this program knows version \(version)",
                remedy: "Use a ckstore on both sides that knows the same version.")
        }
        return checksum
    }
}

/// What a frame says.
enum FrameKind: UInt8 {
    case start = 1
    case checkpoint = 2
    case span = 3
    case zeros = 4
    case checkpointEnd = 5
    case end = 6

    /// The longest payload; a longer one is damage.
    var longestPayload: Int {
        switch self {
        case .start: StartFrame.fixedBytes + 8 * StartFrame.mostRelatives
        case .checkpoint: CheckpointFrame.longest
        case .span: SpanFrame.longestHead + pagesPerSpan * pageSize
        case .zeros: ZerosFrame.byteCount
        case .checkpointEnd: CheckpointEndFrame.byteCount
        case .end: EndFrame.byteCount
        }
    }
}

/// The fields in front of a frame's payload.
struct FrameHeader {
    var kind: FrameKind
    /// Counted from 0 in each stream.
    var sequence: UInt64
    var payloadBytes: Int
    /// The chain's value with this frame.
    var chain = Hash128.zero

    static let magic: UInt32 = 0x4653_4B43  // "CKSF"
    static let byteCount = 48
    private static let checkedBytes = 24
    private static let chainOffset = 32

    /// The header of the frame that follows on one of chain value `before`; its own value is its last 16 bytes.
    static func encode(_ header: inout FrameHeader, _ payload: UnsafeRawBufferPointer, after before: Hash128) -> [UInt8] {
        var writer = ByteWriter(length: byteCount)
        writer.put(magic)
        writer.put(header.kind.rawValue)
        writer.pad(3)
        writer.put(header.sequence)
        writer.put(UInt32(payload.count))
        writer.put(UInt32(0))
        writer.put(unsafe hash128(writer.bytes.span.bytes).low)
        header.chain = unsafe chain(writer.bytes, payload, after: before)
        writer.put(header.chain)
        return writer.bytes
    }

    /// - Throws: `.damagedStream`.
    static func decode(_ bytes: [UInt8], expected sequence: UInt64) throws(StoreError) -> FrameHeader {
        let span = unsafe bytes.span.bytes
        guard span.u32(0) == magic, span.u64(checkedBytes) == hash128(span.extracting(0..<checkedBytes)).low else {
            throw .damagedStream("frame \(sequence) does not begin as frames do")
        }
        guard span.u64(8) == sequence else {
            let isOld = span.u64(8) < sequence
            throw .damagedStream(isOld ? "frame \(span.u64(8)) came twice" : "frame \(span.u64(8)) came where frame \(sequence) should be")
        }
        guard let kind = FrameKind(rawValue: span.u8(4)) else { throw .damagedStream("frame \(sequence) is of kind \(span.u8(4))") }
        let length = Int(span.u32(16))
        guard length <= kind.longestPayload else { throw .damagedStream("frame \(sequence) of \(length) bytes") }
        return FrameHeader(kind: kind, sequence: sequence, payloadBytes: length, chain: span.hash(chainOffset))
    }

    /// The chain's value with a frame: over the value before it, the header up to there, and the payload.
    static func chain(_ header: [UInt8], _ payload: UnsafeRawBufferPointer, after before: Hash128) -> Hash128 {
        var writer = ByteWriter(length: 16 + chainOffset + 16)
        writer.put(before)
        writer.put(Array(header[..<chainOffset]))
        writer.put(unsafe hash128(payload))
        return unsafe hash128(writer.bytes.span.bytes)
    }
}
