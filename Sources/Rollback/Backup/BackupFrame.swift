// The frames between a machine's process and its backup. Formats/ROLLBACK.md 6.
//
// Invariant: a frame that decodes is whole, is the next one of its connection, and is no longer than frames may be.

import CheckpointCore
import PageCodec
import Units

/// What a frame says.
enum FrameKind: UInt16 {
    /// Who the sender is. First frame of the machine's side.
    case hello = 1
    /// What the backup has. Answer to `hello`.
    case welcome = 2
    /// Content of pages: staged, or the answer to `fetch`. Without payload: zeros.
    case pages = 3
    /// The end marker: what was staged, with the state that is its payload, is the next checkpoint.
    case end = 4
    /// The end marker was accepted.
    case accepted = 5
    /// What was staged does not count.
    case discard = 6
    /// Asks for pages of the last checkpoint.
    case fetch = 7
    /// The other side ends the connection, and says why.
    case refused = 8
}

/// One frame.
struct BackupFrame {
    var kind: FrameKind
    var epoch = RollbackEpoch.none
    var pages = PageIndex(UInt64(0))..<PageIndex(UInt64(0))
    var payload: [UInt8] = []

    static let magic: UInt32 = 0x5246_4B43  // "CKFR"
    static let headerBytes = 64
    static let checksumOffset = 48
    /// The longest payload: 256 pages, or device state.
    static let longestPayload = 1 << 20
    /// The longest device state: a welcome has to have room for it.
    static let longestState = 1 << 19
    /// What goes into one frame of pages.
    static let pagesPerFrame = PageCount(UInt64(pagesPerRun))

    /// The bytes, as the frame of this number.
    static func encode(_ frame: BackupFrame, sequence: UInt64, _ payload: UnsafeRawBufferPointer) -> AlignedBytes {
        precondition(payload.count <= longestPayload, "a payload fits a frame")
        let bytes = AlignedBytes(count: headerBytes + payload.count)
        bytes.put(magic, at: 0)
        bytes.put(frame.kind.rawValue, at: 4)
        bytes.put(sequence, at: 8)
        bytes.put(frame.epoch.rawValue, at: 16)
        bytes.put(frame.pages.lowerBound.rawValue, at: 24)
        bytes.put((frame.pages.upperBound - frame.pages.lowerBound).rawValue, at: 32)
        bytes.put(UInt32(payload.count), at: 40)
        unsafe bytes.put(payload, at: headerBytes)
        bytes.put(checksum(bytes, unsafe hash128(payload)), at: checksumOffset)
        return bytes
    }

    /// Of the header up to the checksum, and of the payload's hash.
    private static func checksum(_ header: AlignedBytes, _ payload: Hash128) -> Hash128 {
        let parts = AlignedBytes(count: headerBytes)
        parts.put(header.copy(0..<checksumOffset), at: 0)
        parts.put(payload, at: checksumOffset)
        return parts.hash()
    }

    /// How long the payload behind a header is.
    /// - Throws: `.protocolViolation`.
    static func payloadLength(_ header: AlignedBytes, place: String) throws(EngineError) -> Int {
        guard header.u32(0) == magic else { throw violation("what came is no frame", place) }
        let length = Int(header.u32(40))
        guard length <= longestPayload else { throw violation("a frame of \(length) bytes", place) }
        return length
    }

    /// The frame of a header and its payload, which is to be the frame of this number.
    /// - Throws: `.corrupt` for one that was damaged on its way; `.protocolViolation` for one that is not the next, or of an unknown kind.
    static func decode(_ header: AlignedBytes, _ payload: AlignedBytes, sequence: UInt64, place: String) throws(EngineError) -> BackupFrame {
        guard checksum(header, payload.hash()) == header.hash(checksumOffset) else {
            throw EngineError(.corrupt, "a frame was damaged on its way", remedy: "Connect again.", place: place)
        }
        guard header.u64(8) == sequence else {
            let isOld = header.u64(8) < sequence
            throw violation("frame \(header.u64(8)) " + (isOld ? "came twice" : "came before frame \(sequence)"), place)
        }
        let (first, count) = (header.u64(24), header.u64(32))
        guard let kind = FrameKind(rawValue: header.u16(4)) else { throw violation("a frame of kind \(header.u16(4))", place) }
        guard first < 1 << 40, count < 1 << 40 else { throw violation("pages \(first) and \(count) more", place) }
        return BackupFrame(
            kind: kind, epoch: RollbackEpoch(header.u64(16)), pages: PageIndex(first)..<PageIndex(first + count),
            payload: payload.copy(0..<payload.count))
    }

    static func violation(_ what: String, _ place: String) -> EngineError {
        EngineError(.protocolViolation, what, remedy: "Connect again; if it comes back, one side is no ckstore of this version.", place: place)
    }
}
