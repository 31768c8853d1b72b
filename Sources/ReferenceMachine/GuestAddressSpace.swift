// The physical memory of a guest: pieces of this process's memory, one behind the other from address 0.
//
// Invariants:
// - An address or range that comes from the guest is checked before memory is touched; what lies outside is nil, never a trap.
// - Processors and the machine itself use the trapped mapping (`GuestMemory.bytes`); only the data of disk requests goes through
//   `deviceBytes`.

import CheckpointCore
import MachineMemory
import Units

/// A physical address of a guest.
public struct GuestAddress: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    /// Traps on overflow.
    @inlinable public static func + (a: GuestAddress, b: ByteCount) -> GuestAddress { GuestAddress(a.rawValue + b.rawValue) }
    /// The distance from `b` up to `a`; `b` must not lie behind `a`.
    @inlinable public static func - (a: GuestAddress, b: GuestAddress) -> ByteCount { ByteCount(a.rawValue - b.rawValue) }
}

/// Where the guest's memory is in this process.
struct GuestAddressSpace: Sendable {
    /// One piece of memory and where the guest sees it.
    struct Piece: Sendable {
        let start: GuestAddress
        let memory: GuestMemory
        var end: GuestAddress { start + memory.byteLength }
    }

    /// Behind it lie the pages that processors of Intel need for real mode, and no memory.
    static let maximumByteLength = ByteCount.gibibytes(3)
    /// Page tables, stacks, a program and its data have room in it.
    static let minimumByteLength = ByteCount.mebibytes(2)

    let pieces: [Piece]
    let byteLength: ByteCount

    /// - Throws: `.invalidInput` when there is too little or too much memory.
    init(_ memory: [GuestMemory], name: String) throws(EngineError) {
        var pieces: [Piece] = []
        var end = GuestAddress(UInt64(0))
        for memory in memory {
            pieces.append(Piece(start: end, memory: memory))
            guard memory.byteLength <= Self.maximumByteLength, (end + memory.byteLength).rawValue <= Self.maximumByteLength.rawValue else {
                throw EngineError(
                    .invalidInput, "a machine can't have more than \(Self.maximumByteLength) bytes of memory",
                    remedy: "Give it less.", place: name)
            }
            end = end + memory.byteLength
        }
        guard let first = memory.first, first.byteLength >= Self.minimumByteLength else {
            throw EngineError(
                .invalidInput, "the machine's first piece of memory has less than \(Self.minimumByteLength) bytes",
                remedy: "Make it longer.", place: name)
        }
        self.pieces = pieces
        byteLength = end - GuestAddress(UInt64(0))
    }

    /// The range as a device sees it; nil when it does not lie within one piece of memory, or is empty.
    func buffer(at address: GuestAddress, _ byteCount: ByteCount) -> DMABuffer? {
        guard byteCount > .zero, byteCount <= byteLength, address.rawValue <= byteLength.rawValue - byteCount.rawValue else { return nil }
        guard let piece = pieces.last(where: { $0.start <= address }), address + byteCount <= piece.end else { return nil }
        return DMABuffer(memory: piece.memory, offset: address - piece.start, byteCount: byteCount)
    }

    /// Whether a word of 32 bits, aligned, is at an address.
    func hasWord(at address: GuestAddress) -> Bool { address.rawValue % 4 == 0 && buffer(at: address, ByteCount(4)) != nil }

    /// Stores a word as a processor would: where writes are trapped, it waits for its page.
    func store(_ word: UInt32, at address: GuestAddress) { storeRaw(word.littleEndian, at: address) }

    /// Stores a number of 64 bits, like `store` of 32.
    func store(_ number: UInt64, at address: GuestAddress) { storeRaw(number.littleEndian, at: address) }

    /// Stores bytes at consecutive addresses of one piece of memory.
    func store(bytes: [UInt8], at address: GuestAddress) {
        unsafe trappedBytes(at: address, ByteCount(bytes.count)).copyBytes(from: bytes)
    }

    private func storeRaw<Number: FixedWidthInteger & BitwiseCopyable>(_ number: Number, at address: GuestAddress) {
        unsafe trappedBytes(at: address, ByteCount(MemoryLayout<Number>.size)).storeBytes(of: number, as: Number.self)
    }

    /// The range through the mapping whose writes are trapped. One outside of the memory is a programmer's mistake.
    private func trappedBytes(at address: GuestAddress, _ byteCount: ByteCount) -> UnsafeMutableRawBufferPointer {
        guard let buffer = buffer(at: address, byteCount) else { preconditionFailure("checked by whoever took the address from the guest") }
        let start = buffer.offset.int
        return unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.memory.bytes[start..<start + byteCount.int])
    }
}
