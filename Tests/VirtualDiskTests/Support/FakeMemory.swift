// A machine's memory with a checkpoint being taken of it, without traps: the test's processors write through `write`, which copies as a
// write fault would.
//
// Invariant: a page is copied at most once for a checkpoint, before anything is written to it.

import MachineMemory
import Threading
import Units
import VirtualDisks

final class FakeMemory: CheckpointedMemory {
    struct State {
        var isMarked = false
        var copies: [PageIndex: [UInt8]] = [:]
    }

    let memory: GuestMemory
    private let state = Lock(State())

    init(_ memory: GuestMemory) { self.memory = memory }

    /// Step 806.
    func mark() { state.withLock { $0 = State(isMarked: true) } }
    /// Step 828.
    func clear() { state.withLock { $0 = State() } }

    private func copy(_ page: PageIndex, _ state: inout State) {
        guard state.isMarked, state.copies[page] == nil else { return }
        state.copies[page] = unsafe [UInt8](memory.bytes(of: page..<page + PageCount(1)))
    }

    /// A processor writes; `start` is a byte of the memory.
    func write(_ start: Int, _ bytes: [UInt8]) {
        state.withLock { state in
            for page in start / pageSize...(start + bytes.count - 1) / pageSize { copy(PageIndex(page), &state) }
            unsafe UnsafeMutableRawBufferPointer(rebasing: memory.bytes[start..<start + bytes.count]).copyBytes(from: bytes)
        }
    }

    /// Everything, as the machine sees it.
    var ongoing: [UInt8] { unsafe [UInt8](memory.bytes) }

    /// Everything, as the checkpoint saves it: step 824.
    var checkpointed: [UInt8] {
        state.withLock { state in
            var result = unsafe [UInt8](memory.bytes)
            for (page, bytes) in state.copies { result.replaceSubrange(page.int * pageSize..<(page.int + 1) * pageSize, with: bytes) }
            return result
        }
    }

    // MARK: CheckpointedMemory

    func wasCopied(_ memory: GuestMemory, _ page: PageIndex) -> Bool { state.withLock { $0.copies[page] != nil } }

    func preserve(_ memory: GuestMemory, _ pages: Range<PageIndex>) {
        state.withLock { state in
            for page in pages.lowerBound.rawValue..<pages.upperBound.rawValue { copy(PageIndex(page), &state) }
        }
    }

    func withCopies(of buffer: GuestBuffer, _ body: ([CopiedPiece]) -> Void) {
        state.withLock { state in
            let pages = buffer.eachPage.filter { state.copies[$0] != nil }
            var bytes = pages.flatMap { state.copies[$0]! }
            unsafe bytes.withUnsafeMutableBytes { all in
                body(
                    pages.enumerated().map { number, page in
                        let part = buffer.part(in: page)
                        let start = number * pageSize + buffer.offset.int + part.lowerBound - page.int * pageSize
                        return unsafe CopiedPiece(
                            range: part, bytes: UnsafeMutableRawBufferPointer(rebasing: all[start..<start + part.count]))
                    })
            }
            for (number, page) in pages.enumerated() { state.copies[page] = Array(bytes[number * pageSize..<(number + 1) * pageSize]) }
        }
    }
}
