// Salvage follows blocks that compaction moved: by forwarding tables, and without them by birth and checksum.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import PageCodec
import StoreFormat
import StoreTesting
import Testing
import Units

/// Bytes put one behind the other, little-endian.
private func bytes(_ value: UInt64, _ count: Int) -> [UInt8] { Array(value.littleEndianBytes.prefix(count)) }

private func seal(_ block: inout [UInt8], magic: String, birth: UInt64) {
    block.replaceSubrange(16..<32, with: Array(magic.utf8) + bytes(UInt64(block.count), 4) + bytes(birth, 8))
    let hash = unsafe hash128(block.span.bytes.extracting(16..<block.count))
    block.replaceSubrange(0..<16, with: bytes(hash.low, 8) + bytes(hash.high, 8))
}

/// Moves every run to segments that were free, as compaction does.
private struct Compaction {
    let history: History
    var segment: Int
    var offset = 128
    private let id: UInt64 = 0x1234_5678
    /// Of each old segment: entries of its forwarding table, by offset.
    private(set) var entries: [Int: [(offset: Int, birth: UInt64, bytes: [UInt8])]] = [:]

    init(_ history: History) throws {
        self.history = history
        segment = Int(history.geometry.segmentCount) - 40
        try begin()
    }

    private func begin() throws {
        let uuid = try Salvage(try history.medium()).uuid
        let header = SegmentHeader(
            storeUUID: uuid, segment: SegmentIndex(segment), segmentClass: .runs, baseGeneration: Generation(UInt64(1)),
            segmentSize: history.geometry.segmentSize, birth: BlockBirth(id))
        try history.overwrite(at: history.range(of: segment).lowerBound, header.encoded())
    }

    /// Writes a moved run. `kept`: the pages of the old run that it has.
    mutating func put(_ run: [UInt8], from old: Int, kept: UInt16) throws {
        if offset + run.count + 256 > Int(history.geometry.segmentSize) {
            try end()
            segment += 1
            offset = 128
            try begin()
        }
        try history.overwrite(at: history.range(of: segment).lowerBound + offset, run)
        let (oldSegment, oldOffset) = place(old)
        let birth = run[24..<32].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
        let entry =
            bytes(UInt64(oldOffset), 4) + bytes(UInt64(segment), 4) + bytes(UInt64(offset), 4) + bytes(UInt64(run.count), 4) + bytes(birth, 8)
            + run[0..<16] + [1, run[49]] + bytes(UInt64(kept), 2) + bytes(UInt64(kept), 2) + [0, 0]
        entries[oldSegment, default: []].append((oldOffset, birth, entry))
        offset = (offset + run.count + 63) / 64 * 64
    }

    private func place(_ old: Int) -> (segment: Int, offset: Int) {
        let size = Int(history.geometry.segmentSize)
        let inData = old - history.geometry.dataOffset.int
        return (inData / size, inData % size)
    }

    /// The commit record behind the moved blocks: it names no checkpoint's record.
    func end() throws {
        var record = [UInt8](repeating: 0, count: 88)
        record.replaceSubrange(72..<84, with: bytes(UInt64(segment), 4) + bytes(128, 4) + bytes(UInt64(offset - 1), 4))
        seal(&record, magic: "CKCM", birth: id)
        try history.overwrite(at: history.range(of: segment).lowerBound + offset, record)
    }

    /// The forwarding tables, in a segment of the catalog's class.
    func writeTables() throws {
        let target = segment + 1
        let uuid = try Salvage(try history.medium()).uuid
        let header = SegmentHeader(
            storeUUID: uuid, segment: SegmentIndex(target), segmentClass: .catalog, baseGeneration: Generation(UInt64(1)),
            segmentSize: history.geometry.segmentSize, birth: BlockBirth(UInt64(2)))
        try history.overwrite(at: history.range(of: target).lowerBound, header.encoded())
        var offset = 4096
        for (old, list) in entries.sorted(by: { $0.key < $1.key }) {
            let sorted = list.sorted { ($0.offset, $0.birth) < ($1.offset, $1.birth) }
            var table = [UInt8](repeating: 0, count: 32) + bytes(UInt64(old), 4) + bytes(UInt64(sorted.count), 4) + sorted.flatMap(\.bytes)
            seal(&table, magic: "CKFT", birth: 9)
            try history.overwrite(at: history.range(of: target).lowerBound + offset, table)
            offset = (offset + table.count + 63) / 64 * 64
        }
    }
}

/// The same run without its first page.
private func withoutFirstPage(_ run: [UInt8]) throws -> [UInt8] {
    let old = try unsafe PageRunHeader.decode(run.span.bytes)
    var pages = [UInt8](repeating: 0, count: old.pages.count * pageSize)
    let payload = Array(run[old.payloadOffset...])
    if old.codec == .raw { pages = payload } else {
        let isRight = unsafe payload.withUnsafeBytes { from in unsafe pages.withUnsafeMutableBytes { to in unsafe decompress(from, into: to) } }
        guard isRight else { throw Mismatch("the run does not unpack") }
    }
    let rest = PageRunHeader(regionKey: old.regionKey, span: old.span, codec: .raw, pages: Array(old.pages.dropFirst()))
    var block = [UInt8](repeating: 0, count: rest.payloadOffset) + pages.dropFirst(pageSize)
    let birth = run[24..<32].reversed().reduce(UInt64(0)) { $0 << 8 | UInt64($1) }
    unsafe block.withUnsafeMutableBytes { block in
        unsafe rest.encode(into: block)
        unsafe Block.seal(block, kind: .run, birth: BlockBirth(birth))
    }
    return block
}

private func run(_ history: History) throws -> SalvageReport { try Salvage(try history.medium()).run(into: nil) }

@Suite struct MovedBlockTests {
    private func moved(seed: UInt64, dropsPages: Bool, tables: Bool) throws -> (History, SalvageReport) {
        let history = try History(seed: seed)
        var compaction = try Compaction(history)
        let all = try history.bytes()
        for block in try history.blocks() where block.header.kind == .run {
            let bytes = Array(all[block.range])
            let count = try unsafe PageRunHeader.decode(bytes.span.bytes).pages.count
            let drops = dropsPages && count > 1
            try compaction.put(
                drops ? try withoutFirstPage(bytes) : bytes, from: block.range.lowerBound,
                kept: UInt16(truncatingIfNeeded: (1 << count) - (drops ? 2 : 1)))
            try history.zero(block.range)
        }
        try compaction.end()
        if tables { try compaction.writeTables() }
        return (history, try run(history))
    }

    @Test func `whole blocks that were moved are found without any table`() async throws {
        try await onPlainThread {
            let (history, report) = try self.moved(seed: 201, dropsPages: false, tables: false)
            #expect(report.checkpoints.allSatisfy { $0.state == .whole }, "\(report.checkpoints.map(\.state))")
            #expect(report.checkpoints.count == history.order.count)
        }
    }

    @Test func `runs that lost dead pages are found by forwarding tables, and without them are lost`() async throws {
        try await onPlainThread {
            let (_, report) = try self.moved(seed: 202, dropsPages: true, tables: true)
            let lost = report.checkpoints.reduce(0) { $0 + $1.lostPages.int }
            let read = report.checkpoints.reduce(0) { $0 + $1.regions.reduce(0) { $0 + $1.readPages.int } }
            // The first page of each run is gone, all others are there.
            #expect(lost > 0 && read > lost, "\(read) read, \(lost) lost")
            let (_, without) = try self.moved(seed: 202, dropsPages: true, tables: false)
            #expect(without.checkpoints.reduce(0) { $0 + $1.lostPages.int } > lost)
        }
    }
}
