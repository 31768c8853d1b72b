// Frames one after the other: written with their numbers and chain, read and held against them.
//
// Invariants:
// - A frame that is handed out is whole, is the next one, and everything in front of it was as it was sent.
// - After an error nothing more is read: nobody knows what stands where.

import CheckpointStore
import PageCodec
import StoreFormat
import Units

/// Writes the frames of one stream. Used by one thread at a time.
final class FrameWriter {
    private let descriptor: StreamDescriptor
    private var chain = Hash128.zero
    private(set) var frameCount: UInt64 = 0
    private(set) var byteCount = ByteCount.zero

    init(_ descriptor: StreamDescriptor) { self.descriptor = descriptor }

    /// Writes what a stream begins with.
    func begin() throws(StoreError) {
        let preamble = Preamble.encoded()
        chain = try Preamble.check(preamble)
        try write(preamble)
    }

    func put(_ kind: FrameKind, _ payload: [UInt8]) throws(StoreError) {
        let payload = payload
        let header = unsafe payload.withUnsafeBytes { unsafe self.header(kind, $0) }
        try write(header + payload)
    }

    func put(_ payload: FramePayload) throws(StoreError) {
        let bytes = unsafe UnsafeRawBufferPointer(rebasing: payload.buffer.bytes[payload.range])
        try write(unsafe header(payload.kind, bytes))
        unsafe try descriptor.write(bytes)
        byteCount += ByteCount(bytes.count)
    }

    private func header(_ kind: FrameKind, _ payload: UnsafeRawBufferPointer) -> [UInt8] {
        var header = FrameHeader(kind: kind, sequence: frameCount, payloadBytes: payload.count)
        let bytes = unsafe FrameHeader.encode(&header, payload, after: chain)
        chain = header.chain
        frameCount += 1
        return bytes
    }

    private func write(_ bytes: [UInt8]) throws(StoreError) {
        // The standard library's closure can't throw typed errors: what went wrong is carried out by hand.
        let failure: StoreError? = unsafe bytes.withUnsafeBytes { buffer in
            do throws(StoreError) {
                unsafe try descriptor.write(buffer)
                return nil
            } catch { return error }
        }
        if let failure { throw failure }
        byteCount += ByteCount(bytes.count)
    }
}

/// Reads the frames of one stream. Used by one thread at a time.
final class FrameReader {
    private let descriptor: StreamDescriptor
    private var chain = Hash128.zero
    private(set) var frameCount: UInt64 = 0
    private(set) var byteCount = ByteCount.zero

    init(_ descriptor: StreamDescriptor) { self.descriptor = descriptor }

    /// Reads what a stream begins with.
    /// - Throws: `.notAStream`, `.unsupported`, `.damagedStream`, `.cutStream`; what reading throws.
    func begin() throws(StoreError) {
        chain = try Preamble.check(try bytes(Preamble.byteCount))
        byteCount += ByteCount(Preamble.byteCount)
    }

    /// The next frame, its payload in a buffer that `make` makes for that many bytes.
    /// - Throws: `.damagedStream`, `.cutStream`; what reading throws.
    func next(_ make: (FrameKind) -> AlignedBuffer) throws(StoreError) -> FramePayload {
        let header = try bytes(FrameHeader.byteCount)
        let fields = try FrameHeader.decode(header, expected: frameCount)
        let buffer = make(fields.kind)
        let payload = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[0..<fields.payloadBytes])
        guard unsafe try descriptor.read(into: payload) == payload.count else { throw .cutStream() }
        guard unsafe FrameHeader.chain(header, UnsafeRawBufferPointer(payload), after: chain) == fields.chain else {
            throw .damagedStream("frame \(frameCount) is not what was sent, or does not follow on the one in front of it")
        }
        chain = fields.chain
        frameCount += 1
        byteCount += ByteCount(header.count + payload.count)
        return FramePayload(kind: fields.kind, buffer: buffer, range: 0..<payload.count)
    }

    /// - Throws: `.damagedStream` when something follows on the end.
    func requireEnd() throws(StoreError) {
        var byte: UInt8 = 0
        let count: Result<Int, StoreError> = unsafe withUnsafeMutableBytes(of: &byte) { buffer in
            do throws(StoreError) { return .success(unsafe try descriptor.read(into: buffer)) } catch { return .failure(error) }
        }
        guard try count.get() == 0 else { throw .damagedStream("something follows on its end") }
    }

    private func bytes(_ count: Int) throws(StoreError) -> [UInt8] {
        var bytes = [UInt8](repeating: 0, count: count)
        let got: Result<Int, StoreError> = unsafe bytes.withUnsafeMutableBytes { buffer in
            do throws(StoreError) { return .success(unsafe try descriptor.read(into: buffer)) } catch { return .failure(error) }
        }
        guard try got.get() == count else { throw .cutStream() }
        return bytes
    }
}

extension FramePayload {
    /// The bytes of a small frame.
    var bytes: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(buffer.bytes)[range]) }

    /// Decodes it.
    func decoded<T>(_ decode: (RawSpan) throws(FormatError) -> T) throws(StoreError) -> T {
        try decoding { () throws(FormatError) in try decode(unsafe bytes.bytes) }
    }
}
