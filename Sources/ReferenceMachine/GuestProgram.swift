// What a new machine runs: machine code, and arguments for it.
//
// Invariant: code and arguments are all that a program's run depends on, besides what its devices bring.

import CKVMGuests
import Units

/// Code that starts in 64-bit mode with flat segments, an identity mapping of all memory, a stack of 4 KiB and interrupts off. It finds
/// the number of its processor in rdi, how many there are in rsi, and `arguments` in rdx, rcx, r8 and r9.
public struct GuestProgram: Sendable {
    /// At most 64 KiB.
    public var code: [UInt8]
    /// Handed to every processor.
    public var arguments: (UInt64, UInt64, UInt64, UInt64)

    /// Any program.
    public init(code: [UInt8], arguments: (UInt64, UInt64, UInt64, UInt64) = (0, 0, 0, 0)) {
        self.code = code
        self.arguments = arguments
    }

    /// Where programs of this module have their data; the memory below holds page tables, stacks, the code and a page of shared state.
    public static let workAddress = GuestAddress(UInt64(1 << 20))

    /// Every processor changes a part of memory of its own at random places; they wait for each other after each stage. Prints a full
    /// stop for each stage, and a digest of everything as 16 hexadecimal digits and a line feed. 17 instructions a round.
    ///
    /// - Parameter partLength: of each processor's part, a power of two; the parts follow each other from `workAddress` on.
    public static func counter(stages: Int, roundsPerStage: Int, partLength: ByteCount, seed: UInt64) -> GuestProgram {
        precondition(stages > 0 && roundsPerStage > 0, "at least one round")
        precondition(partLength.rawValue.nonzeroBitCount == 1 && partLength >= ByteCount(8), "a power of two")
        return GuestProgram(code: builtIn(CK_GUEST_COUNTER), arguments: (UInt64(stages), UInt64(roundsPerStage), partLength.rawValue, seed))
    }

    /// Every processor keeps four requests under way at a disk of its own, the one with its number: reads, writes and flushes that overlap,
    /// of 1 to 8 sectors. The first one prints a digest of all that was read. Each has buffers of 64 KiB, one behind the other from
    /// `workAddress` on.
    ///
    /// - Parameters:
    ///   - requests: of each processor.
    ///   - sectors: a power of two; each disk has at least 7 more.
    public static func disk(requests: Int, sectors: UInt64, seed: UInt64) -> GuestProgram {
        precondition(requests > 0 && sectors.nonzeroBitCount == 1 && sectors <= 1 << 31, "at least one request; a power of two")
        return GuestProgram(code: builtIn(CK_GUEST_DISK), arguments: (UInt64(requests + diskRequestsUnderWay), sectors, seed, 0))
    }

    /// Sends back every byte of the serial port's input with its bit 5 changed; halts at a full stop.
    public static func echo() -> GuestProgram { GuestProgram(code: builtIn(CK_GUEST_ECHO)) }

    private static let diskRequestsUnderWay = 4

    private static func builtIn(_ guest: ck_guest) -> [UInt8] {
        var length = 0
        return unsafe [UInt8](UnsafeBufferPointer(start: ck_guest_code(guest, &length), count: length))
    }
}
