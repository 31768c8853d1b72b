// From the pages of a stream, in whatever order they come, to whole spans for the store.
//
// A stream of a running guest goes through its memory in order, with jumps: a page that the guest is about to write is
// sent at once. Saved page by page, each jump would cost an index leaf; so pages off the main pass are kept aside until the main
// pass reaches their span.
//
// Invariants:
// - Every page that came is handed to the region exactly once, or the collector has thrown.
// - Memory is bounded: `spanBuffers` spans and `strayLimit` stray pages, whatever the guest does.

import CheckpointCore
import Glibc
import Threading
import Units

/// Gathers one stream's pages into spans and saves these on threads of its own. One thread puts pages.
@safe final class SpanCollector: @unchecked Sendable {
    /// Where pages of a block go, and how many it has.
    struct Block: Sendable {
        var region: any RegionSink
        var pageCount: PageCount
    }

    private struct Key: Hashable {
        var block: Int
        var span: UInt64
    }

    /// A span being filled.
    @safe private final class Span: @unchecked Sendable {
        let bytes: UnsafeMutableRawBufferPointer
        var present = [Bool](repeating: false, count: pagesPerSpan)
        var count = 0
        init() { unsafe bytes = .allocate(byteCount: pagesPerSpan * pageSize, alignment: pageSize) }
        deinit { unsafe bytes.deallocate() }
    }

    private struct Work: Sendable {
        var key: Key
        var span: Span
    }

    private struct Shared {
        var queue: [Work] = []
        var idle: [Span]
        var isFinished = false
        var failure: EngineError?
    }

    private static let spanBuffers = 24
    private static let strayLimit = 16384

    private let blocks: [Block]
    private let shared: Lock<Shared>
    private var threads: [PlainThread] = []
    private var main: (key: Key, span: Span)?
    private var lastMain: Key?
    private var strays: [Key: [(page: Int, bytes: [UInt8])]] = [:]
    private var strayCount = 0

    /// - Parameter workers: threads that compress and write; `prepareThread` runs first on each of them.
    init(blocks: [Block], workers: Int, prepareThread: @escaping @Sendable () -> Void) throws(EngineError) {
        self.blocks = blocks
        shared = Lock(Shared(idle: (0..<Self.spanBuffers).map { _ in Span() }))
        threads = (0..<workers).compactMap { _ in
            PlainThread { [shared, blocks] in
                prepareThread()
                Self.work(shared, blocks)
            }
        }
        guard !threads.isEmpty else { throw EngineError(.noMemory, "the system has no thread to give") }
    }

    deinit { end() }

    /// Takes one page; nil bytes are zeros. The bytes are copied.
    func put(block: Int, page: PageIndex, _ bytes: UnsafeRawBufferPointer?) throws(EngineError) {
        let key = Key(block: block, span: page.rawValue / UInt64(pagesPerSpan))
        let offset = Int(page.rawValue % UInt64(pagesPerSpan))
        if main == nil, isNext(key) { try beginMain(key) }
        if let main, main.key == key {
            unsafe place(bytes, at: offset, in: main.span)
            if main.span.count == expected(key) { try endMain() }
        } else {
            try unsafe keep(bytes, at: offset, of: key)
        }
    }

    /// Saves what is left. Returns when everything that was put is with its region.
    func finish() throws(EngineError) {
        if main != nil { try endMain() }
        try saveStrays()
        end()
        if let failure = shared.withLock({ $0.failure }) { throw failure }
    }

    // MARK: the main pass

    /// The span behind the last one of the main pass, or the first that comes of another block, goes on with it.
    private func isNext(_ key: Key) -> Bool {
        guard let lastMain else { return true }
        return key.block != lastMain.block || key.span == lastMain.span + 1
    }

    private func expected(_ key: Key) -> Int {
        let first = key.span * UInt64(pagesPerSpan)
        return Int(min(UInt64(pagesPerSpan), blocks[key.block].pageCount.rawValue - first))
    }

    private func beginMain(_ key: Key) throws(EngineError) {
        let span = try idleSpan()
        for (page, bytes) in takeStrays(of: key) {
            unsafe bytes.withUnsafeBytes { bytes in unsafe place(bytes, at: page, in: span) }
        }
        main = (key, span)
    }

    private func endMain() throws(EngineError) {
        guard let (key, span) = main else { return }
        main = nil
        lastMain = key
        try enqueue(Work(key: key, span: span))
    }

    private func place(_ bytes: UnsafeRawBufferPointer?, at page: Int, in span: Span) {
        if !span.present[page] {
            span.present[page] = true
            span.count += 1
        }
        let target = unsafe span.bytes.baseAddress! + page * pageSize
        if let bytes = unsafe bytes { unsafe memcpy(target, bytes.baseAddress!, pageSize) } else { unsafe memset(target, 0, pageSize) }
    }

    // MARK: strays

    private func keep(_ bytes: UnsafeRawBufferPointer?, at page: Int, of key: Key) throws(EngineError) {
        // A main pass that never completes its span (it jumps back and forth) must not turn the rest into strays.
        if main != nil, isNext(key), main?.span.count ?? 0 > 0, strays[key]?.count ?? 0 >= pagesPerSpan / 8 {
            try endMain()
            try beginMain(key)
            if let main { unsafe place(bytes, at: page, in: main.span) }
            return
        }
        let copy = unsafe bytes.map { unsafe [UInt8]($0) } ?? [UInt8](repeating: 0, count: pageSize)
        strays[key, default: []].append((page, copy))
        strayCount += 1
        if strayCount > Self.strayLimit { try saveStrays() }
    }

    private func takeStrays(of key: Key) -> [(page: Int, bytes: [UInt8])] {
        let taken = strays.removeValue(forKey: key) ?? []
        strayCount -= taken.count
        return taken
    }

    private func saveStrays() throws(EngineError) {
        for key in strays.keys.sorted(by: { ($0.block, $0.span) < ($1.block, $1.span) }) {
            let span = try idleSpan()
            for (page, bytes) in takeStrays(of: key) {
                unsafe bytes.withUnsafeBytes { bytes in unsafe place(bytes, at: page, in: span) }
            }
            try enqueue(Work(key: key, span: span))
        }
    }

    // MARK: the workers

    private func idleSpan() throws(EngineError) -> Span {
        try shared.waitFor { (shared) throws(EngineError) -> Span? in
            if let failure = shared.failure { throw failure }
            return shared.idle.popLast()
        }
    }

    private func enqueue(_ work: Work) throws(EngineError) {
        try shared.withLock { (shared) throws(EngineError) in
            if let failure = shared.failure { throw failure }
            shared.queue.append(work)
        }
        shared.wake()
    }

    private func end() {
        shared.withLock { $0.isFinished = true }
        shared.wake()
        for thread in threads { thread.join() }
        threads = []
    }

    private static func work(_ shared: Lock<Shared>, _ blocks: [Block]) {
        while let work = shared.waitFor({ shared -> Work?? in
            if !shared.queue.isEmpty { return shared.queue.removeFirst() }
            return shared.isFinished ? .some(nil) : nil
        }) {
            do throws(EngineError) { try save(work, blocks[work.key.block]) } catch {
                shared.withLock { $0.failure = $0.failure ?? error }
            }
            work.span.present = [Bool](repeating: false, count: pagesPerSpan)
            work.span.count = 0
            shared.withLock { $0.idle.append(work.span) }
            shared.wake()
        }
    }

    private static func save(_ work: Work, _ block: Block) throws(EngineError) {
        var page = 0
        let present = work.span.present
        while let start = present[page...].firstIndex(of: true) {
            let end = present[start...].firstIndex(of: false) ?? pagesPerSpan
            let bytes = unsafe UnsafeRawBufferPointer(rebasing: work.span.bytes[start * pageSize..<end * pageSize])
            let first = PageIndex(work.key.span * UInt64(pagesPerSpan) + UInt64(start))
            try unsafe block.region.write(bytes, at: first, isStable: true)
            page = end
            if page == pagesPerSpan { break }
        }
    }
}
