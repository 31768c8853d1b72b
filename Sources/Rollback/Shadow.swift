// Where a copy of the checkpoint is kept: in memory, or on a medium (`MediumShadow`).
//
// Invariants:
// - Pages that are put replace what was there when the shadow is read, at once.
// - What outlives the process changes with `commit` alone.

import CheckpointCore
import MachineMemory
import PageCodec
import Units

/// A copy of a whole memory. Thread-safe; overlapping pieces are put and read by one thread at a time.
package protocol Shadow: AnyObject, Sendable {
    /// Whether all its pages are zero before anything is put.
    var isZeroAtFirst: Bool { get }
    /// Whether what was put can be read for sure. Where it can't, a failed flush may lose what was put since the last commit.
    var isSure: Bool { get }
    /// The memory that it takes in this process.
    var residentBytes: ByteCount { get }
    /// Takes over pages of the checkpoint in the making. The bytes don't change meanwhile.
    func put(_ pages: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer) throws(EngineError)
    /// What was put belongs to the checkpoint with this state from now on.
    func commit(_ state: [UInt8]) throws(EngineError)
    /// Reads pages as they were put last.
    func read(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError)
    /// Ends its use.
    func close()
}

extension Shadow {
    /// Takes over a whole memory, with its state: the first checkpoint.
    func fill(from memory: GuestMemory, state: [UInt8]) throws(EngineError) {
        try PageRanges(memory.allPages).forEachPiece(memory.pagesPerUnit, limit: PageCount(UInt64(pagesPerSpan))) { piece throws(EngineError) in
            let bytes = unsafe memory.content(of: piece)
            if isZeroAtFirst, unsafe isZero(bytes) { return }
            try unsafe put(piece, bytes)
        }
        try commit(state)
    }
}

/// A shadow in this process's memory, overwritten in place.
final class MemoryShadow: Shadow {
    private let pages: GuestMemory

    /// - Throws: `.noMemory`.
    init(_ name: String, byteLength: ByteCount) throws(EngineError) {
        pages = try GuestMemory("\(name) (shadow)", byteLength: byteLength)
    }

    var isZeroAtFirst: Bool { true }
    var isSure: Bool { true }
    var residentBytes: ByteCount { pages.byteLength }
    func put(_ pages: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer) { unsafe self.pages.bytes(of: pages).copyMemory(from: bytes) }
    func commit(_ state: [UInt8]) {}
    func read(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) {
        unsafe buffer.copyMemory(from: self.pages.content(of: pages))
    }
    func close() {}
}

extension RollbackParts {
    /// The shadow that the options ask for, with memory and `state` as its checkpoint.
    func makeShadow(_ state: [UInt8]) throws(EngineError) -> any Shadow {
        let shadow: any Shadow = try options.medium == nil ? MemoryShadow(memory.name, byteLength: memory.byteLength) : makeMediumShadow()!
        do throws(EngineError) { try shadow.fill(from: memory, state: state) } catch {
            shadow.close()
            throw error
        }
        return shadow
    }
}
