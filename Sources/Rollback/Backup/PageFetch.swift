// Pages of the last checkpoint, brought from the backup while the next ones are on their way.
//
// Invariant: no more requests are on their way than the socket takes at once: the backup, which waits until its answers are taken, never keeps
// this side from sending.

import CheckpointCore
import Threading
import Units

/// Brings some pages, in ascending order. Used by one thread at a time.
final class PageFetch: Sendable {
    private let connection: FrameConnection
    private let frames: [Range<PageIndex>]
    /// How many of the frames have been asked for, and how many have come.
    private let progress = Lock((asked: 0, received: 0))

    private static let window = 32

    /// Begins to bring `pages`.
    init(_ pages: PageRanges, _ connection: FrameConnection) throws(EngineError) {
        self.connection = connection
        var frames: [Range<PageIndex>] = []
        try pages.forEachPiece(PageCount(UInt64(1)), limit: BackupFrame.pagesPerFrame) { frames.append($0) }
        self.frames = frames
    }

    /// The next pages, which end where a frame ends: at the end of a range, or a multiple of the pages of a frame behind its start.
    func next(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        var start = pages.lowerBound
        while start < pages.upperBound {
            let (asked, received) = progress.withLock { $0 }
            let end = min(received + Self.window, frames.count)
            if asked - received <= Self.window / 2, asked < end {
                for frame in frames[asked..<end] { try connection.send(BackupFrame(kind: .fetch, pages: frame)) }
                progress.withLock { $0.asked = end }
            }
            let answer = try connection.receive(.pages)
            let expected = frames[received]
            guard answer.pages == expected, answer.payload.count == (expected.upperBound - expected.lowerBound).bytes.int else {
                throw BackupFrame.violation("an answer about other pages", connection.place)
            }
            precondition(expected.lowerBound == start && expected.upperBound <= pages.upperBound, "pages are brought in order")
            let place = (start - pages.lowerBound).bytes.int
            unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[place..<place + answer.payload.count]).copyBytes(from: answer.payload)
            progress.withLock { $0.received += 1 }
            start = expected.upperBound
        }
    }
}
