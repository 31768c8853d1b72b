// Feeds one input to one decoder and holds it to its promises. The fuzzer's whole body, and what the
// tests replay its corpus with.
//
// Invariant: a broken promise traps, so that a fuzzer and a test both see it.

import PageCodec
import StoreFormat
import Units

/// Runs the decoder that the first byte of `input` chooses over the rest. The second byte says whether a
/// block's magic, length and checksum are put right first, which is how an input gets behind those checks.
func exerciseDecoder(_ input: [UInt8]) {
    guard input.count >= 2 else { return }
    let body = [UInt8](input[2...])
    let decoders = 17
    let choice = Int(input[0]) % decoders
    if let kind = BlockKind(rawValue: UInt8(choice)) {
        exerciseBlock(input[1] & 1 == 0 ? body : repaired(body, kind: kind), kind: kind)
        return
    }
    switch choice {
    case 0: exerciseSlot(input[1] & 1 == 0 ? body : repairedSlot(body))
    case 16: _ = unsafe try? BlockPointer.decode(body.span.bytes, at: Int(input[1]))
    case 12: _ = unsafe try? Block.peek(body.span.bytes)
    case 13: roundTrip(body, decode: { bytes in try CatalogValue.decode(bytes) }, encode: { $0.encoded() })
    case 14: exerciseCompression(body)
    default: exerciseDecompression(body, length: Int(input[1]) * 257)
    }
}

/// A block's bytes with the magic of `kind`, their own length and checksum; too short or too long ones as they are.
func repaired(_ bytes: [UInt8], kind: BlockKind) -> [UInt8] {
    guard (BlockHeader.encodedLength...kind.maximumLength).contains(bytes.count) else { return bytes }
    var bytes = bytes
    let birth = unsafe bytes.withUnsafeBytes { unsafe $0.loadUnaligned(fromByteOffset: 24, as: UInt64.self) }
    Block.seal(&bytes, kind: kind, birth: BlockBirth(birth))
    return bytes
}

/// A slot's bytes with the right checksum; those of another length as they are.
func repairedSlot(_ bytes: [UInt8]) -> [UInt8] {
    guard bytes.count == Slot.encodedLength else { return bytes }
    let hash = unsafe hash128(bytes.span.bytes.extracting(24...))
    var bytes = bytes
    unsafe bytes.withUnsafeMutableBytes {
        unsafe $0.storeBytes(of: Slot.magic.littleEndian, toByteOffset: 0, as: UInt64.self)
        unsafe $0.storeBytes(of: hash.low.littleEndian, toByteOffset: 8, as: UInt64.self)
        unsafe $0.storeBytes(of: hash.high.littleEndian, toByteOffset: 16, as: UInt64.self)
    }
    return bytes
}

/// What decodes must encode to as many bytes, which decode to the same.
private func roundTrip<Value: Equatable>(
    _ bytes: [UInt8], decode: (RawSpan) throws -> Value, encode: (Value) -> [UInt8]
) {
    guard let value = unsafe try? decode(bytes.span.bytes) else { return }
    let again = encode(value)
    precondition(again.count == bytes.count, "it decoded, but encodes to another length")
    precondition(unsafe (try? decode(again.span.bytes)) == value, "it decoded, but does not survive a round trip")
}

private func exerciseBlock(_ bytes: [UInt8], kind: BlockKind) {
    let birth =
        bytes.count >= 32
        ? BlockBirth(unsafe bytes.withUnsafeBytes { unsafe $0.loadUnaligned(fromByteOffset: 24, as: UInt64.self) })
        : BlockBirth(UInt64(0))
    switch kind {
    case .run: exerciseRun(bytes, birth: birth)
    case .leaf: roundTrip(bytes, decode: { b in try Leaf.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .patchLeaf: roundTrip(bytes, decode: { b in try PatchLeaf.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .inner: roundTrip(bytes, decode: { b in try InnerNode.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .checkpointRecord:
        roundTrip(bytes, decode: { b in try CheckpointRecord.decode(b) }, encode: { $0.encoded() })
    case .catalogNode: roundTrip(bytes, decode: { b in try CatalogNode.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .tableLeaf: roundTrip(bytes, decode: { b in try TableLeaf.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .tableInner: roundTrip(bytes, decode: { b in try TableInner.decode(b) }, encode: { $0.encoded(birth: birth) })
    case .segmentHeader: roundTrip(bytes, decode: { b in try SegmentHeader.decode(b) }, encode: { $0.encoded() })
    case .commitRecord: roundTrip(bytes, decode: { b in try CommitRecord.decode(b) }, encode: { $0.encoded() })
    case .forwardingTable:
        roundTrip(bytes, decode: { b in try ForwardingTable.decode(b) }, encode: { $0.encoded(birth: birth) })
    }
}

/// A run's fields survive a round trip, and the check without allocation agrees with the decoder.
private func exerciseRun(_ bytes: [UInt8], birth: BlockBirth) {
    roundTrip(bytes, decode: { b in try PageRunHeader.decode(b) }) { header in
        var block = [UInt8](repeating: 0xEE, count: bytes.count)
        unsafe block.withUnsafeMutableBytes { unsafe header.encode(into: $0) }
        block.replaceSubrange(header.payloadOffset..., with: bytes[header.payloadOffset...])
        Block.seal(&block, kind: .run, birth: birth)
        return block
    }
    guard let header = unsafe try? PageRunHeader.decode(bytes.span.bytes) else { return }
    for (position, page) in header.pages.enumerated() {
        let fields = unsafe try? PageRunHeader.check(
            bytes.span.bytes, regionKey: header.regionKey, span: header.span, page: page, at: position)
        precondition(fields?.payloadOffset == header.payloadOffset && fields?.codec == header.codec, "check disagrees")
    }
    if header.codec == .lz4 {
        exerciseDecompression([UInt8](bytes[header.payloadOffset...]), length: header.pages.count * pageSize)
    }
}

private func exerciseSlot(_ bytes: [UInt8]) {
    guard bytes.count > 26 else { return }
    let (position, twin) = (Int(bytes[24]), bytes[26] & 1)
    roundTrip(
        bytes, decode: { b in try Slot.decode(b, position: position, twin: twin) }, encode: { $0.encoded(twin: twin) })
}

private func exerciseCompression(_ bytes: [UInt8]) {
    var compressor = RunCompressor()
    var block = [UInt8](repeating: 0, count: bytes.count)
    let length = unsafe bytes.withUnsafeBytes { source in
        unsafe block.withUnsafeMutableBytes { unsafe compressor.compress(source, into: $0) }
    }
    guard let length else { return }
    precondition(length < bytes.count, "compressed, but not smaller")
    var again = [UInt8](repeating: 0, count: bytes.count)
    let isWhole = unsafe block.withUnsafeBytes { source in
        unsafe again.withUnsafeMutableBytes { unsafe decompress(UnsafeRawBufferPointer(rebasing: source[..<length]), into: $0) }
    }
    precondition(isWhole && again == bytes, "compression lost something")
}

/// Whatever the bytes: nothing outside the destination is written, and a prefix agrees with the whole.
///
/// A malformed block with a match of distance 0 is not refused by LZ4: it yields what stood in the destination. Such a
/// block is known by its decoding differently into different memory, and promises nothing.
private func exerciseDecompression(_ bytes: [UInt8], length: Int) {
    guard length > 0 else { return }
    let prefixLength = (length + 1) / 2
    let fills: [UInt8] = [0xA5, 0x5A]
    let wholes = fills.map { decoded(bytes, room: length, total: length, fill: $0) }
    let prefixes = fills.map { decoded(bytes, room: prefixLength, total: length, fill: $0) }
    guard let whole = wholes[0], whole == wholes[1], prefixes[0] == prefixes[1] else { return }
    precondition(prefixes[0] == [UInt8](whole[..<prefixLength]), "the prefix differs")
}

/// The first `room` of the `total` bytes that a block decodes to, in memory that was full of `fill`; nil when refused.
private func decoded(_ block: [UInt8], room: Int, total: Int, fill: UInt8) -> [UInt8]? {
    let fence = 64
    var bytes = [UInt8](repeating: fill, count: room + fence)
    let isSound = unsafe block.withUnsafeBytes { source in
        unsafe bytes.withUnsafeMutableBytes { memory in
            let room = unsafe UnsafeMutableRawBufferPointer(rebasing: memory[..<room])
            return room.count == total
                ? unsafe decompress(source, into: room) : unsafe decompressPrefix(source, into: room, totalLength: total)
        }
    }
    precondition(bytes[room...].allSatisfy { $0 == fill }, "written behind the destination")
    return isSound ? [UInt8](bytes[..<room]) : nil
}
