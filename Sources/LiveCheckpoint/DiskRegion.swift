// A disk at the instant on its way into the store [830].

import CheckpointCore
import Units
import VirtualDisks

/// The pages of a disk that stands still. Thread-safe.
struct DiskPages: CopyablePages {
    let reader: ParentReader

    func copy(_ pages: Range<PageIndex>, into destination: UnsafeMutableRawBufferPointer) throws(EngineError) {
        unsafe try reader.read(DiskOffset(pages.lowerBound.rawValue * UInt64(pageSize)), into: destination)
    }
}

/// Saves one disk.
struct DiskRegion {
    let reader: ParentReader
    let region: any RegionSink

    private var length: ByteCount { reader.geometry.diskLength }

    /// The pages to be saved: those of changed block groups, or all.
    private func pages(isFull: Bool) -> PageRanges {
        let all = PageRanges(PageIndex(UInt64(0))..<PageIndex(PageCount(covering: length).rawValue))
        guard !isFull, let changed = reader.changedSince else { return all }
        let perGroup = reader.geometry.groupSize.rawValue / UInt64(pageSize)
        return PageRanges(changed.map { PageIndex($0.lowerBound.rawValue * perGroup)..<PageIndex($0.upperBound.rawValue * perGroup) }).intersection(all)
    }

    /// - Parameter isFull: everything, and not only what was written since the last checkpoint.
    /// - Returns: bytes that were read.
    func save(isFull: Bool, workers: Int) throws(EngineError) -> ByteCount {
        let wanted = pages(isFull: isFull)
        // The last page of a disk may be a part of one, and has to be put as such.
        let whole = PageRanges(PageIndex(UInt64(0))..<PageIndex(length.rawValue / UInt64(pageSize)))
        try PageSaver(DiskPages(reader: reader), into: region).save(wanted.intersection(whole), workers: workers) { _ in }
        let rest = length.int % pageSize
        if rest > 0, let end = wanted.ranges.last?.upperBound, end > whole.ranges.last?.upperBound ?? PageIndex(UInt64(0)) {
            let buffer = PageBuffer(pages: PageCount(1))
            let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<rest])
            let page = PageIndex(end.rawValue - 1)
            unsafe try reader.read(DiskOffset(page.rawValue * UInt64(pageSize)), into: bytes)
            unsafe try region.write(UnsafeRawBufferPointer(bytes), at: page, isStable: true)
        }
        return wanted.count.bytes
    }
}
