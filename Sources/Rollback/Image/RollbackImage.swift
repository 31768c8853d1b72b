// A checkpoint that has outlived its process: read from the medium that it was kept on.
//
// Invariant: what is returned is the last checkpoint that was committed on the medium, or the one that was being committed when its process
// ended; never a mix, and never unverified bytes.

import CheckpointCore
import MachineMemory
import Media
import Units

/// The checkpoint on a medium. Thread-safe. Holds a shared lock on the medium until `close`.
public final class RollbackImage: Sendable {
    private let medium: any Medium
    private let image: StoredImage

    /// Opens the medium's checkpoint, whatever became of the process that made it.
    ///
    /// - Throws: `.notFound` when there is none; `.mismatch`, `.corrupt`, `.unsupported`; `.busy` while a process keeps its memory's
    ///   checkpoints there.
    public static func open(_ medium: any Medium) throws(EngineError) -> RollbackImage {
        try StoredImage.lock(medium, .shared)
        do throws(EngineError) {
            guard let image = try StoredImage.load(medium) else {
                throw EngineError(.notFound, "the medium holds no rollback image", place: medium.name)
            }
            return RollbackImage(medium, image)
        } catch {
            try StoredImage.unlock(medium)
            throw error
        }
    }

    private init(_ medium: any Medium, _ image: StoredImage) {
        self.medium = medium
        self.image = image
    }

    /// How many bytes a medium needs for the checkpoints of a memory.
    /// - Throws: `.invalidInput` for sizes that no image can have.
    public static func requiredSize(
        byteLength: ByteCount, stateCapacity: ByteCount = RollbackOptions().stateCapacity
    ) throws(EngineError) -> ByteCount {
        try ImageGeometry(of: byteLength, stateCapacity: stateCapacity, place: "").requiredSize
    }

    /// The checkpoint's number on this medium.
    public var epoch: RollbackEpoch { image.record.epoch }
    /// The device state that it was taken with.
    public var state: [UInt8] { image.state }
    /// What the memory was called.
    public var memoryName: String { image.record.name }
    /// The memory's length.
    public var byteLength: ByteCount { image.record.geometry.byteLength }

    /// Reads pages; `buffer` has exactly their size.
    /// - Throws: `.corrupt` for a page that fails its checksum; `.store`. The buffer's content is undefined then.
    public func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        precondition(pages.upperBound.rawValue <= image.record.geometry.pageCount.rawValue, "pages of the memory")
        try unsafe StoredImage.read(pages, of: image.table, on: medium, into: buffer)
    }

    /// Fills memory, which nobody uses, with the checkpoint.
    /// - Throws: `.mismatch` when its length is another; as `read`.
    public func restore(into memory: GuestMemory) throws(EngineError) {
        guard memory.byteLength == byteLength else {
            throw EngineError(
                .mismatch, "the checkpoint has \(byteLength) bytes of memory and this memory \(memory.byteLength)",
                remedy: "Map memory of that length.", place: memory.name)
        }
        try PageRanges(memory.allPages).forEachPiece(memory.pagesPerUnit, limit: PageCount(UInt64(pagesPerSpan))) { piece throws(EngineError) in
            try unsafe read(pages: piece, into: memory.bytes(of: piece))
        }
    }

    /// Gives up the lock; the medium stays open, its owner closes it.
    public func close() throws(EngineError) { try StoredImage.unlock(medium) }
}
