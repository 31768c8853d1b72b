// How a new guest finds its memory: page tables, stacks, its program.
//
// Invariants:
// - Page tables map every address to itself, writable, in pages of 2 MiB. They are marked as used and written from the start, so that
//   processors never write to them: memory depends on the program alone.
// - All of this lies below `GuestProgram.workAddress`.

import CKVM
import CheckpointCore
import Units

/// Prepares memory and tells processors where to start.
enum GuestStart {
    /// Stacks have 4 KiB each, between the page tables and the program.
    static let maximumProcessorCount = 8

    private static let topTable = GuestAddress(UInt64(0x1000))
    private static let middleTable = GuestAddress(UInt64(0x2000))
    private static let firstPageTable = GuestAddress(UInt64(0x3000))
    private static let program = GuestAddress(UInt64(0x10000))
    private static let maximumCodeLength = ByteCount.kibibytes(64)
    private static let entriesPerTable = 512
    private static let tableLength = ByteCount.kibibytes(4)
    private static let largePage = ByteCount.mebibytes(2)
    private static let largePageBit: UInt64 = 0x80
    /// Present, writable, for programs too, accessed, dirty.
    private static let entryBits: UInt64 = 0x67

    /// Writes page tables and the program into memory.
    static func prepare(_ space: GuestAddressSpace, _ program: GuestProgram, name: String) throws(EngineError) {
        guard !program.code.isEmpty else {
            throw EngineError(
                .unsupported, "there is no guest program for this kind of processor", remedy: "Use an x86-64 system.", place: name)
        }
        guard program.code.count <= maximumCodeLength.int else {
            throw EngineError(.invalidInput, "the program is longer than \(maximumCodeLength) bytes", place: name)
        }
        space.store(middleTable.rawValue | entryBits, at: topTable)
        let pages = Int(space.byteLength.roundedUp(to: largePage.rawValue).rawValue / largePage.rawValue)
        for page in 0..<pages {
            let table = page / entriesPerTable
            let pageTable = firstPageTable + ByteCount(table * tableLength.int)
            if page % entriesPerTable == 0 { space.store(pageTable.rawValue | entryBits, at: middleTable + ByteCount(table * 8)) }
            let address = UInt64(page) * largePage.rawValue
            space.store(address | entryBits | largePageBit, at: pageTable + ByteCount(page % entriesPerTable * 8))
        }
        space.store(bytes: program.code, at: Self.program)
    }

    /// The registers that a processor starts with.
    static func registers(processor index: Int, of count: Int, _ arguments: (UInt64, UInt64, UInt64, UInt64)) -> ck_start {
        ck_start(
            page_tables: topTable.rawValue, instruction: program.rawValue, stack: program.rawValue - UInt64(index) * tableLength.rawValue,
            rdi: UInt64(index), rsi: UInt64(count), rdx: arguments.0, rcx: arguments.1, r8: arguments.2, r9: arguments.3)
    }
}
