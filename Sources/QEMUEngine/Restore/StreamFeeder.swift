// Pages from a feed into a migration stream.
//
// Invariant: what is sent of a unit is every page of it, or all but the zero pages where the machine's memory is known to be zero.

import CheckpointCore
import MigrationStream
import Threading
import Units

/// What has been sent so far. Thread-safe.
final class FeedCounts: Sendable {
    private let state = Lock(RestoreCounts())
    private let progress: @Sendable (RestoreCounts) -> Void

    /// - Parameter progress: hears of it when more has been sent.
    init(progress: @escaping @Sendable (RestoreCounts) -> Void) { self.progress = progress }

    func add(_ change: (inout RestoreCounts) -> Void) { state.withLock(change) }
    func tell() { progress(value) }
    var value: RestoreCounts { state.withLock { $0 } }
}

/// How much of a machine has been restored.
public struct RestoreCounts: Sendable, Equatable {
    /// Pages with data that were sent.
    public var dataPages = PageCount.zero
    /// Pages that are zero, sent as such or left as they were.
    public var zeroPages = PageCount.zero
    /// Bytes of the stream.
    public var sentBytes = ByteCount.zero
    /// How often the running machine asked for a page (lazy restores only).
    public var requestCount = 0
}

/// Writes one stream to one socket. Used by one thread.
struct StreamFeeder {
    var writer = StreamWriter()
    let socket: StreamSocket
    let counts: FeedCounts
    /// Of which blocks zero pages need not be sent.
    let freshBlocks: [Bool]

    init(socket: StreamSocket, counts: FeedCounts, freshBlocks: [Bool]) {
        self.socket = socket
        self.counts = counts
        self.freshBlocks = freshBlocks
    }

    /// Puts a unit's pages into the stream.
    mutating func put(_ unit: FedPages) {
        let block = unit.block.int
        let isFresh = freshBlocks[block]
        let total = unit.pages.upperBound - unit.pages.lowerBound
        var zeros = total
        if unit.areZero {
            if !isFresh { writer.zeroPages(block: block, unit.pages) }
        } else {
            zeros = .zero
            unsafe unit.forEachPage { page, bytes in
                if let bytes = unsafe bytes { return unsafe writer.pages(block: block, at: page, bytes) }
                zeros += PageCount(1)
                if !isFresh { writer.zeroPages(block: block, page..<page + PageCount(1)) }
            }
        }
        counts.add { counts in
            counts.dataPages += total - zeros
            counts.zeroPages += zeros
        }
    }

    /// Sends what has gathered.
    mutating func send() throws(EngineError) {
        let count = writer.byteCount
        let socket = socket
        unsafe try writer.drain { (bytes) throws(EngineError) in unsafe try socket.send(bytes) }
        counts.add { $0.sentBytes += count }
        counts.tell()
    }
}

/// The whole machine in one stream, which runs when it has been read to its end.
enum FullStream {
    /// Bytes that gather before they are sent.
    private static let sendAt = ByteCount.kibibytes(512)

    /// Feeds all of it. Returns when the last byte has been handed to the kernel.
    static func feed(
        _ plan: RestorePlan, deviceState: DeviceState, from feed: PageFeed, to socket: StreamSocket, counts: FeedCounts
    ) throws(EngineError) {
        var feeder = StreamFeeder(socket: socket, counts: counts, freshBlocks: plan.blocks.map(\.isFresh))
        feeder.writer.header(machineType: plan.machineType)
        feeder.writer.ramBlocks(plan.streamBlocks(showsHugePages: false))
        while let unit = try feed.next() {
            feeder.put(unit)
            if feeder.writer.byteCount >= sendAt { try feeder.send() }
        }
        feeder.writer.endRAM()
        feeder.writer.deviceState(deviceState.bytes)
        try feeder.send()
        // QEMU looks for a description behind the state, and waits for it where there is none.
        socket.endSending()
    }
}
