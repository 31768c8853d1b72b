// What tests of memory need: a region that keeps pages in memory, and writers that don't stop.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import Threading
import Units

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

/// A region that holds what was put, on top of a parent's pages.
@safe final class MemoryRegion: RegionSink, @unchecked Sendable {
    private let lock = Lock(0)
    private(set) var bytes: [UInt8]
    private(set) var putCounts: [UInt16]
    /// Fails from so many puts on.
    var failsAfter = Int.max
    /// Fails when pages are made zero.
    var failsZeros = false
    /// Waits before each put.
    var delayMicroseconds: UInt32 = 0

    init(byteLength: ByteCount, parent: MemoryRegion? = nil) {
        bytes = parent?.bytes ?? [UInt8](repeating: 0, count: byteLength.int)
        putCounts = [UInt16](repeating: 0, count: byteLength.int / pageSize)
    }

    func write(_ source: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) throws(EngineError) {
        usleep(delayMicroseconds)
        try lock.withLock { count throws(EngineError) in
            count += 1
            guard count <= failsAfter else { throw EngineError(.noSpace, "the test's region is full") }
            unsafe bytes.withUnsafeMutableBytes {
                unsafe UnsafeMutableRawBufferPointer(rebasing: $0[first.int * pageSize..<first.int * pageSize + source.count]).copyMemory(from: source)
            }
            for page in 0..<source.count / pageSize { putCounts[first.int + page] += 1 }
        }
    }

    func put(page: PageIndex, _ source: UnsafeRawBufferPointer) throws(EngineError) { try unsafe write(source, at: page, isStable: true) }

    func putZeros(_ pages: Range<PageIndex>) throws(EngineError) {
        guard !failsZeros else { throw EngineError(.noSpace, "the test's region is full") }
        lock.withLock { _ in
            for index in pages.lowerBound.int * pageSize..<pages.upperBound.int * pageSize { bytes[index] = 0 }
        }
    }

    /// The first page that differs from `image`.
    func firstDifference(_ image: [UInt8]) -> Int? {
        if bytes == image { return nil }
        return (0..<bytes.count / pageSize).first { bytes[$0 * pageSize..<($0 + 1) * pageSize] != image[$0 * pageSize..<($0 + 1) * pageSize] }
    }
}

extension GuestMemory {
    var image: [UInt8] { unsafe [UInt8](bytes) }
}

/// Threads that write all over a memory, and stand still when told to.
final class Writers: Sendable {
    private struct State {
        var isStopping = false
        var isPaused = false
        var standing = 0
    }
    private let state = Lock(State())
    private let threads: [PlainThread]
    private let count: Int

    init(_ memory: GuestMemory, count: Int, seed: UInt64, sleepMicroseconds: UInt32 = 0) {
        self.count = count
        let state = self.state
        threads = (0..<count).map { number in
            PlainThread {
                var random = SeededGenerator(seed: seed, UInt64(number))
                var sequential = random.below(Int(memory.pageCount.rawValue))
                while true {
                    let isStopping = state.withLock { $0.isStopping || $0.isPaused }
                    if isStopping {
                        state.withLock { $0.standing += 1 }
                        state.wake()
                        let ends = state.waitFor { $0.isStopping ? true : $0.isPaused ? nil : false }
                        state.withLock { $0.standing -= 1 }
                        if ends { return }
                    }
                    let page: Int
                    if number % 2 == 0 {
                        page = random.below(Int(memory.pageCount.rawValue))
                    } else {
                        sequential = (sequential + 1) % Int(memory.pageCount.rawValue)
                        page = sequential
                    }
                    unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: page * pageSize + random.below(512) * 8, as: UInt64.self)
                    if sleepMicroseconds > 0 { usleep(sleepMicroseconds) }
                }
            }!
        }
    }

    func pause() {
        state.withLock { $0.isPaused = true }
        let all = count
        state.waitFor { $0.standing == all ? () : nil }
    }

    func resume() {
        state.withLock { $0.isPaused = false }
        state.wake()
    }

    func stop() {
        state.withLock { $0.isStopping = true }
        state.wake()
        for thread in threads { thread.join() }
    }
}
