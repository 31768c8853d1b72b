// The source's side of a postcopy: pages go to a machine that runs already, what it waits for first.
//
// Invariants:
// - Every page of every block is sent exactly once, ROMs and zero pages too: the machine's memory is empty where nothing has arrived.
// - The stream ends only when all pages have been sent. Whatever goes wrong before, the connection is broken off and the
//   machine waits.

import CheckpointCore
import CheckpointStore
import MigrationStream
import Threading
import Units

/// Serves one connection to a machine in postcopy. Thread-safe; `close` must be called.
final class PostcopySource: Sendable {
    private struct State {
        var feed: PageFeed?
        /// Requests that came before there was a feed.
        var early: [(block: Int, pages: Range<PageIndex>)] = []
        var received: [Int: [UInt8]] = [:]
        var isResumed = false
        var shutStatus: UInt32?
        /// Why nothing more comes from the machine.
        var failure: EngineError?
    }
    private let socket: StreamSocket
    private let plan: RestorePlan
    private let counts: FeedCounts
    private let state = Lock(State())
    private let receiver: Lock<PlainThread?>

    /// The values of our pings; the machine answers with the same.
    private enum Ping {
        static let connected: UInt32 = 1
        static let loaded: UInt32 = 3
    }
    private static let handshakeMilliseconds = 60_000

    /// Begins to listen to the machine.
    init(_ plan: RestorePlan, socket: StreamSocket, counts: FeedCounts) throws(EngineError) {
        self.plan = plan
        self.socket = socket
        self.counts = counts
        receiver = Lock(nil)
        guard let thread = PlainThread({ self.receive() }) else {
            throw EngineError(.noMemory, "can't start a thread that listens to the machine")
        }
        receiver.withLock { $0 = thread }
    }

    /// Breaks off the connection, unless all has been said, and ends the threads. Harmless when done twice.
    func close() {
        socket.shutDown()
        let thread = receiver.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
        state.withLock { $0.feed }?.close()
    }

    /// A feed of everything that the machine lacks, in units as it can take them.
    /// - Parameter received: by block, the pages that it has; nil: none.
    private func makeFeed(_ source: any CheckpointSource, received: [Int: [UInt8]]?) throws(EngineError) -> PageFeed {
        var blocks: [PageFeed.Block] = []
        for (index, block) in plan.blocks.enumerated() {
            let pages = PageCount(covering: ByteCount(block.byteLength))
            var missing = PageBitmap(pageCount: pages, isFull: true)
            if let bytes = received?[index] {
                guard let present = PageBitmap(pageCount: pages, littleEndian: bytes) else {
                    throw EngineError(.protocolViolation, "the machine has pages behind the end of \(block.name)", place: block.name)
                }
                missing.subtract(present)
            }
            let unit = max(UInt64(pagesPerRun), block.pageBytes / UInt64(pageSize))
            blocks.append(
                PageFeed.Block(region: try source.region(block.region), unitPages: PageCount(unit), missing: missing))
        }
        let feed = try PageFeed(blocks)
        let early = state.withLock { state in
            state.feed = feed
            defer { state.early = [] }
            return state.early
        }
        for request in early { try feed.request(MemoryBlockIndex(request.block), request.pages) }
        return feed
    }

    // MARK: sending

    /// Starts the machine from its device state and feeds it until it has everything.
    func start(_ source: any CheckpointSource, deviceState: DeviceState) throws(EngineError) {
        let blocks = plan.streamBlocks(showsHugePages: true)
        var feeder = StreamFeeder(socket: socket, counts: counts, freshBlocks: plan.blocks.map { _ in false })
        feeder.writer.header(machineType: plan.machineType)
        feeder.writer.openReturnPath()
        feeder.writer.ping(Ping.connected)
        feeder.writer.adviseOfPostcopy(pageSizes: plan.blocks.reduce(0) { $0 | $1.pageBytes })
        feeder.writer.ramBlocks(blocks)
        // The machine has emptied its memory when it was told of postcopy; it wants to be told to forget something all the same.
        let firstPage = PageCount(plan.blocks[0].pageBytes / UInt64(pageSize))
        feeder.writer.discard(block: 0, PageIndex(UInt64(0))..<PageIndex(firstPage.rawValue))
        feeder.writer.package(deviceState.sectionBytes, ping: Ping.loaded)
        try feeder.send()
        try serve(try makeFeed(source, received: nil), &feeder)
    }

    /// Goes on with a machine that lost its source: asks what it has, and feeds it the rest.
    func resume(_ source: any CheckpointSource) throws(EngineError) {
        let blocks = plan.streamBlocks(showsHugePages: true)
        var feeder = StreamFeeder(socket: socket, counts: counts, freshBlocks: plan.blocks.map { _ in false })
        feeder.writer.resumeBlocks(blocks)
        for index in blocks.indices { feeder.writer.requestReceivedBitmap(block: index) }
        try feeder.send()
        let received = try answer("say which pages it has") { $0.received.count == blocks.count ? $0.received : nil }
        let feed = try makeFeed(source, received: received)
        feeder.writer.resumePostcopy()
        try feeder.send()
        try answer("go on") { $0.isResumed ? () : nil }
        try serve(feed, &feeder)
    }

    /// Waits for something that the machine is to send.
    private func answer<T>(_ what: String, _ find: (State) -> T?) throws(EngineError) -> T {
        let found = try state.waitFor(milliseconds: Self.handshakeMilliseconds) { (state) throws(EngineError) -> T? in
            if let failure = state.failure { throw failure }
            return find(state)
        }
        guard let found else { throw EngineError(.timeout, "the machine did not \(what) in \(Self.handshakeMilliseconds / 1000) seconds") }
        return found
    }

    private func serve(_ feed: PageFeed, _ feeder: inout StreamFeeder) throws(EngineError) {
        do throws(EngineError) {
            while let unit = try feed.next() {
                feeder.put(unit)
                // Each unit ends its section: what somebody waits for must not wait for what comes after it.
                feeder.writer.endSection()
                try feeder.send()
            }
            feeder.writer.endRAM()
            feeder.writer.endOfStream()
            try feeder.send()
            let status = try state.waitFor { (state) throws(EngineError) -> UInt32? in
                if let status = state.shutStatus { return status }
                if let failure = state.failure { throw failure }
                return nil
            }
            guard status == 0 else { throw EngineError(.refused, "QEMU says that the restore did not succeed (status \(status))") }
        } catch {
            // What broke the connection explains more than that it is broken.
            let first = state.withLock { $0.failure }
            socket.shutDown()
            throw error.code == .cancelled || error.code == .connection ? first ?? error : error
        }
    }

    // MARK: receiving

    private func receive() {
        do throws(EngineError) {
            try receiveMessages()
            throw EngineError(.connection, "the machine has closed the connection on which it is fed")
        } catch {
            let feed = state.withLock { state in
                if state.failure == nil, state.shutStatus == nil { state.failure = error }
                return state.shutStatus == nil ? state.feed : nil
            }
            state.wake()
            // Whoever waits for the next page would wait for nothing.
            feed?.close()
        }
    }

    /// Takes messages until the connection ends.
    private func receiveMessages() throws(EngineError) {
        var parser = ReturnPathParser(blocks: plan.streamBlocks(showsHugePages: true))
        let window = AlignedBuffer(count: 64 << 10)
        var filled = 0
        while true {
            let free = unsafe UnsafeMutableRawBufferPointer(rebasing: window.bytes[filled...])
            let count = unsafe socket.receive(into: free)
            guard count > 0 else { return try parser.finish() }
            filled += count
            let bytes = unsafe UnsafeRawBufferPointer(rebasing: window.bytes[..<filled])
            let consumed = unsafe try parser.feed(bytes) { (message) throws(EngineError) in try take(message) }
            filled -= consumed
            unsafe window.base.copyMemory(from: window.base + consumed, byteCount: filled)
        }
    }

    private func take(_ message: ReturnPathMessage) throws(EngineError) {
        switch message {
        case .requestPages(let block, let pages):
            counts.add { $0.requestCount += 1 }
            let feed = state.withLock { state in
                if state.feed == nil { state.early.append((block, pages)) }
                return state.feed
            }
            try feed?.request(MemoryBlockIndex(block), pages)
        case .receivedPages(let block, let bitmap): state.withLock { $0.received[block] = bitmap }
        case .resumed: state.withLock { $0.isResumed = true }
        case .shut(let status): state.withLock { $0.shutStatus = status }
        case .pong: break
        }
        state.wake()
    }
}
