// How much is released with one fault: a writer that goes through memory in order should not wait at each page.
//
// Invariant: a window begins at the page that faulted, and is one page unless the faults before it were in order.

/// Recognises sequences of faults, several at once: like read-ahead, for writers. Used under its owner's lock.
struct FaultWindows {
    private struct Stream {
        var next: Int
        var length: Int
        var lastUse: Int
    }

    private static let streamCount = 8
    private let longest: Int
    private var streams: [Stream] = []
    private var clock = 0

    /// - Parameter longest: units that a window has at most.
    init(longest: Int) { self.longest = longest }

    /// The number of units to release with a fault at `unit`.
    mutating func length(at unit: Int) -> Int {
        guard longest > 1 else { return 1 }
        clock += 1
        // Somebody else may have released a few pages in between.
        if let index = streams.firstIndex(where: { unit >= $0.next && unit - $0.next <= 2 }) {
            let length = min(longest, streams[index].length * 2)
            streams[index] = Stream(next: unit + length, length: length, lastUse: clock)
            return length
        }
        let stream = Stream(next: unit + 1, length: 1, lastUse: clock)
        if streams.count < Self.streamCount {
            streams.append(stream)
        } else {
            streams[streams.indices.min { streams[$0].lastUse < streams[$1].lastUse }!] = stream
        }
        return 1
    }
}
