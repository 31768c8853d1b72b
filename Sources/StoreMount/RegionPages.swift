// Pages of regions by way of what all open files share: decoded runs, layouts of spans, readers.
//
// Invariants:
// - Memory is bounded: runs and layouts by bytes, readers by number. What a request is just sending counts beside that.
// - Runs are known by their pointers, which no two blocks of a store ever share: checkpoints that have a page in common have it here
//   once, and a segment that is used again brings new pointers.
// - Only what succeeded is kept: damage is found anew by each read of it.

import CheckpointStore
import StoreFormat
import Units

/// What open files share. Thread-safe.
final class RegionPages: Sendable {
    /// A span of an open region.
    struct SpanKey: Hashable, Sendable {
        var file: Inode
        var span: SpanIndex
    }

    private let runs: SharedCache<BlockPointer, DecodedRun>
    private let layouts: SharedCache<SpanKey, SpanLayout?>
    private let readers: SharedCache<Inode, RegionReader>

    /// Readers that are kept; more files may be open, which then make their readers again.
    private static let keptReaders = 32
    /// The part of the capacity that layouts get, in eighths.
    private static let layoutEighths: UInt64 = 1

    init(capacity: ByteCount) {
        let forLayouts = capacity.rawValue / 8 * Self.layoutEighths
        layouts = SharedCache(capacity: ByteCount(forLayouts))
        runs = SharedCache(capacity: capacity - ByteCount(forLayouts))
        readers = SharedCache(capacity: ByteCount(Self.keptReaders))
    }

    func reader(of file: OpenRegion) throws(StoreError) -> RegionReader {
        try readers.value(file.inode) { () throws(StoreError) in
            (try file.folder.snapshot.reader(file.folder.info).region(file.region.name), ByteCount(1))
        }
    }

    /// Lets go of what only `inode` needs: nobody has it open any more.
    func forget(_ inode: Inode) { readers.remove(inode) }

    /// Where the pages of a span are; nil when they are all zero.
    func layout(of span: SpanIndex, _ file: OpenRegion) throws(StoreError) -> SpanLayout? {
        try layouts.value(SpanKey(file: file.inode, span: span)) { () throws(StoreError) in
            let layout = try reader(of: file).layout(of: span)
            return (layout, layout?.cost ?? ByteCount(64))
        }
    }

    /// A run that the layout names.
    /// - Throws: `.corrupt` where it is damaged, naming the pages that the file has in it, whichever of them are wanted.
    func run(_ pointer: BlockPointer, in layout: SpanLayout, _ file: OpenRegion) throws(StoreError) -> DecodedRun {
        try runs.value(pointer) { () throws(StoreError) in
            do throws(StoreError) {
                let run = try reader(of: file).decode(pointer, of: layout.span)
                return (run, run.cost)
            } catch {
                throw Self.naming(layout.pages(in: pointer), of: layout.span, error)
            }
        }
    }

    /// Brings the runs of a whole span, as far as they are not here. What fails is told to whoever reads it.
    func prepare(_ span: SpanIndex, _ file: OpenRegion) {
        guard let layout = try? layout(of: span, file) else { return }
        var last: BlockPointer?
        for page in 0..<pagesPerSpan {
            guard let pointer = layout.run(of: page), pointer != last else { continue }
            last = pointer
            guard !runs.contains(pointer) else { continue }
            guard (try? run(pointer, in: layout, file)) != nil else { return }
        }
    }

    /// The error with the pages that it concerns: from the first to the last.
    private static func naming(_ pages: [Range<Int>], of span: SpanIndex, _ error: StoreError) -> StoreError {
        guard error.pages == nil, let first = pages.first, let last = pages.last else { return error }
        var error = error
        error.pages = span.firstPage + PageCount(first.lowerBound)..<span.firstPage + PageCount(last.upperBound)
        return error
    }
}
