// The feed of pages: every page once, what is asked for first, nothing made up.

import CheckpointCore
import FaultHarness
import Foundation
import Synchronization
import Testing
import Threading
import Units

/// A region in memory that notes its reads and can be made to fail.
final class MemoryRegion: RegionSource {
    let bytes: [UInt8]
    private let state = Lock((reads: [PageIndex](), bad: Set<UInt64>()))

    init(_ bytes: [UInt8]) { self.bytes = bytes }

    var byteLength: ByteCount { ByteCount(bytes.count) }
    /// The first pages of all reads.
    var reads: [PageIndex] { state.withLock { $0.reads } }

    /// Reading this page fails from now on.
    func damage(_ page: Int) { state.withLock { _ = $0.bad.insert(UInt64(page)) } }

    func read(pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        let isBad = state.withLock { state in
            state.reads.append(pages.lowerBound)
            return state.bad.contains { pages.contains(PageIndex($0)) }
        }
        if isBad { throw EngineError(.corrupt, "damaged on purpose") }
        unsafe bytes.withUnsafeBytes { all in
            unsafe buffer.copyMemory(from: UnsafeRawBufferPointer(rebasing: all[pages.lowerBound.int * 4096..<pages.upperBound.int * 4096]))
        }
    }

    func forEachSpanOfData(
        _ body: @escaping @Sendable (PageIndex, [Range<Int>], UnsafeRawBufferPointer) throws(EngineError) -> Void
    ) throws(EngineError) { preconditionFailure("feeds read by page") }

    func dataRanges() throws(EngineError) -> [Range<PageIndex>] {
        var ranges: [Range<PageIndex>] = []
        for page in 0..<bytes.count / 4096 where bytes[page * 4096..<(page + 1) * 4096].contains(where: { $0 != 0 }) {
            if let last = ranges.last, last.upperBound == PageIndex(page) {
                ranges[ranges.count - 1] = last.lowerBound..<PageIndex(page + 1)
            } else {
                ranges.append(PageIndex(page)..<PageIndex(page + 1))
            }
        }
        return ranges
    }
}

/// Runs a body that waits on a plain thread, and fails when that takes a minute.
func onPlainThread(_ body: @escaping @Sendable () throws -> Void) throws {
    let result = Lock<Result<Void, any Error>?>(nil)
    let thread = PlainThread {
        let outcome = Result { try body() }
        result.withLock { $0 = outcome }
        result.wake()
    }
    let outcome = result.waitFor(milliseconds: 60_000) { $0 }
    try #require(outcome != nil, "it did not come to an end")
    thread?.join()
    try outcome?.get()
}

struct Wrong: Error, CustomStringConvertible { var description: String }

/// Memory in which each page is zero or says its number.
func numberedPages(_ count: Int, _ random: inout SeededGenerator, zeroPercent: UInt64 = 40) -> [UInt8] {
    var bytes = [UInt8](repeating: 0, count: count * 4096)
    var isZero = false
    for page in 0..<count {
        if random.next() % 5 == 0 { isZero = random.next() % 100 < zeroPercent }
        guard !isZero else { continue }
        for index in 0..<8 { bytes[page * 4096 + 100 + index] = UInt8(truncatingIfNeeded: (page + 1) >> (8 * index)) }
    }
    return bytes
}

@Suite struct PageFeedTests {
    @Test func `every missing page is handed out once with its bytes, whatever is asked for meanwhile`() throws {
        for seed in UInt64(1)...12 {
            try onPlainThread {
                var random = SeededGenerator(seed: seed)
                let sizes = [300 + Int(random.next() % 900), 1, 1024]
                let regions = sizes.map { MemoryRegion(numberedPages($0, &random)) }
                var blocks: [PageFeed.Block] = []
                var missing: [PageBitmap] = []
                for (index, region) in regions.enumerated() {
                    let unit = index == 2 ? 512 : 16
                    var bitmap = PageBitmap(pageCount: PageCount(sizes[index]), isFull: true)
                    // What the other side has already, in whole units for huge pages.
                    for page in stride(from: 0, to: sizes[index], by: index == 2 ? 512 : 1) where seed % 3 == 0 && random.next() % 4 == 0 {
                        bitmap.remove(PageIndex(page)..<PageIndex(min(sizes[index], page + (index == 2 ? 512 : 1))))
                    }
                    missing.append(bitmap)
                    blocks.append(
                        PageFeed.Block(region: region, unitPages: PageCount(unit), missing: bitmap))
                }
                let feed = try PageFeed(blocks, readerCount: 3, prefetchLimit: .kibibytes(seed % 2 == 0 ? 4 : 512))
                defer { feed.close() }
                var asking = random
                let asker = PlainThread { [asking] in
                    var random = asking
                    for _ in 0..<400 {
                        let block = Int(random.next() % 3)
                        let page = Int(random.next() % UInt64(sizes[block]))
                        try? feed.request(MemoryBlockIndex(block), PageIndex(page)..<PageIndex(page + 1))
                    }
                }
                defer { asker?.join() }
                _ = asking.next()
                while let unit = try feed.next() {
                    let block = unit.block.int
                    if block == 2, unit.pages.lowerBound.rawValue % 512 != 0 || unit.pages.upperBound.rawValue % 512 != 0 {
                        throw Wrong(description: "seed \(seed): a piece of a huge page")
                    }
                    for page in unit.pages.lowerBound.rawValue..<unit.pages.upperBound.rawValue
                    where !missing[block].contains(PageIndex(page)) {
                        throw Wrong(description: "seed \(seed): page \(page) of block \(block) twice, or not missing")
                    }
                    missing[block].remove(unit.pages)
                    // Requests that crossed the pages on their way.
                    try feed.request(unit.block, unit.pages)
                    let truth = regions[block].bytes
                    if unit.areZero {
                        let bytes = truth[unit.pages.lowerBound.int * 4096..<unit.pages.upperBound.int * 4096]
                        if bytes.contains(where: { $0 != 0 }) { throw Wrong(description: "seed \(seed): data as zeros") }
                        continue
                    }
                    unsafe try unit.forEachPage { page, bytes in
                        let expected = truth[page.int * 4096..<(page.int + 1) * 4096]
                        let isRight = unsafe bytes.map { unsafe $0.elementsEqual(expected) } ?? !expected.contains { $0 != 0 }
                        if !isRight { throw Wrong(description: "seed \(seed): page \(page) of block \(block) has wrong bytes") }
                    }
                }
                for (block, rest) in missing.enumerated() where !rest.isEmpty {
                    throw Wrong(description: "seed \(seed): \(rest.count) pages of block \(block) never came")
                }
                if let next = try feed.next() { throw Wrong(description: "seed \(seed): \(next.pages) after the end") }
            }
        }
    }

    @Test func `what is asked for overtakes what was read ahead, in its unit`() throws {
        try onPlainThread {
            var random = SeededGenerator(seed: 1)
            let region = MemoryRegion(numberedPages(4096, &random, zeroPercent: 0))
            let feed = try PageFeed([PageFeed.Block(region: region)], readerCount: 2, prefetchLimit: .kibibytes(256))
            defer { feed.close() }
            let first = try feed.next()?.pages
            if first?.lowerBound.rawValue ?? 99 > 32 { throw Wrong(description: "began with \(String(describing: first))") }
            // Let it read ahead as far as it may.
            while region.reads.count < 5 { usleep(1000) }
            try feed.request(MemoryBlockIndex(0), PageIndex(3001)..<PageIndex(3002))
            while !region.reads.contains(PageIndex(2992)) { usleep(1000) }
            var order: [UInt64] = []
            for _ in 0..<8 { if let unit = try feed.next() { order.append(unit.pages.lowerBound.rawValue) } }
            if !order.contains(2992) { throw Wrong(description: "3001 was not among the next: \(order)") }
        }
    }

    @Test func `a page that can't be read ends the feed with the reason`() throws {
        for isAsked in [false, true] {
            try onPlainThread {
                var random = SeededGenerator(seed: 7)
                let region = MemoryRegion(numberedPages(512, &random, zeroPercent: 0))
                region.damage(400)
                let feed = try PageFeed([PageFeed.Block(region: region)], prefetchLimit: .kibibytes(64))
                defer { feed.close() }
                if isAsked { try feed.request(MemoryBlockIndex(0), PageIndex(400)..<PageIndex(401)) }
                do {
                    while let unit = try feed.next() {
                        if unit.pages.contains(PageIndex(400)) { throw Wrong(description: "the damaged page was handed out") }
                    }
                    throw Wrong(description: "it came to an end")
                } catch let error as EngineError where error.code == .corrupt {}
                do {
                    _ = try feed.next()
                    throw Wrong(description: "it went on after the failure")
                } catch let error as EngineError where error.code == .corrupt {}
            }
        }
    }

    @Test func `pages that are not there can't be asked for, and a closed feed says so`() throws {
        let region = MemoryRegion([UInt8](repeating: 0, count: 20 * 4096))
        let feed = try PageFeed([PageFeed.Block(region: region)])
        for (block, pages) in [(0, 19..<21), (1, 0..<1), (0, 5..<5)] {
            let error = engineError {
                try feed.request(MemoryBlockIndex(block), PageIndex(pages.lowerBound)..<PageIndex(pages.upperBound))
            }
            #expect(error?.code == .protocolViolation)
        }
        feed.close()
        feed.close()
        #expect(engineError { _ = try feed.next() }?.code == .cancelled)
    }

    @Test func `a bitmap is a set of pages`() throws {
        for seed in UInt64(1)...20 {
            var random = SeededGenerator(seed: seed)
            let count = 1 + Int(random.next() % 300)
            var bitmap = PageBitmap(pageCount: PageCount(count), isFull: seed % 2 == 0)
            var model = [Bool](repeating: seed % 2 == 0, count: count)
            for _ in 0..<50 {
                let low = Int(random.next() % UInt64(count))
                let high = low + Int(random.next() % UInt64(count - low + 1))
                let isInsert = random.next() % 2 == 0
                if isInsert { bitmap.insert(PageIndex(low)..<PageIndex(high)) } else { bitmap.remove(PageIndex(low)..<PageIndex(high)) }
                for page in low..<high { model[page] = isInsert }
                #expect(bitmap.count.int == model.count { $0 }, "seed \(seed)")
                for isMember in [true, false] {
                    let found = bitmap.first(in: PageIndex(low)..<PageIndex(count), isMember: isMember)
                    #expect(found?.int == (low..<count).first { model[$0] == isMember }, "seed \(seed)")
                }
            }
            var bytes = [UInt8](repeating: 0, count: (count + 7) / 8)
            for page in 0..<count where model[page] { bytes[page / 8] |= 1 << UInt8(page % 8) }
            #expect(PageBitmap(pageCount: PageCount(count), littleEndian: bytes) == bitmap, "seed \(seed)")
            #expect(PageBitmap(pageCount: PageCount(count), littleEndian: bytes.dropLast()) == nil)
            #expect(PageBitmap(pageCount: PageCount(count), littleEndian: bytes + [1]) == nil || (count + 7) / 8 % 8 != 0)
        }
    }
}
