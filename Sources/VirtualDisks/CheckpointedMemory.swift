// What a disk has to know of the memory that a checkpoint is being taken of.
//
// Devices write memory without trapping, so the disk has to see to it that their writes reach the right contents: those of pending reads
// the checkpoint's and the machine's, those of new reads the machine's alone [system A, steps 815 and 816; claims 15, 17, 25, 26].
//
// Here the machine goes on with its pages in place, and the original content is copied aside for the checkpoint. The claims copy the other way
// round; so what they direct to the machine's copies goes to the checkpoint's here.

import MachineMemory
import Units

/// A checkpoint's memory, from the instant on until it has been saved. Thread-safe; none of it may wait for disk requests.
public protocol CheckpointedMemory: Sendable {
    /// Whether the original content of a page has been copied aside, so that what devices write in place does not reach the checkpoint any more.
    func wasCopied(_ memory: GuestMemory, _ page: PageIndex) -> Bool
    /// Copies the original content of pages aside unless that was done before. On return they may be written without a trap.
    func preserve(_ memory: GuestMemory, _ pages: Range<PageIndex>)
    /// Calls `body` once with where the checkpoint's copies hold what lies in the buffer: a piece for each page that was copied, ascending.
    /// Pages that were not copied have no piece: their content in place is the checkpoint's too. Nobody reads the copies meanwhile.
    func withCopies(of buffer: GuestBuffer, _ body: ([CopiedPiece]) -> Void)
}

/// A part of a buffer in the checkpoint's copy of a page.
@safe public struct CopiedPiece {
    /// Which part: bytes from the start of the buffer.
    public let range: Range<Int>
    /// Its place in the copy; as long as `range`.
    public let bytes: UnsafeMutableRawBufferPointer

    public init(range: Range<Int>, bytes: UnsafeMutableRawBufferPointer) {
        precondition(range.count == bytes.count, "a piece is as long as the part that it holds")
        self.range = range
        unsafe self.bytes = bytes
    }
}

/// Hears of what devices are about to write, at any time: such writes don't trap, so that nothing else notes them.
public protocol DeviceWriteObserver: Sendable {
    /// A request that will write these pages is being submitted, or was under way when the observer came. Called before `submit`, or
    /// `VirtualDisk.watch`, returns.
    func willBeWritten(_ memory: GuestMemory, _ pages: Range<PageIndex>)
}
