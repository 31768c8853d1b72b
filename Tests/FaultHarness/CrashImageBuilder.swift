// Chooses which unflushed writes, or which parts of them, have arrived, and puts them in place.
//
// Invariant: what arrives is applied oldest first, so that of two overlapping writes that both arrive
// the newer one shows. Units (sectors, words, lines) are those of the medium, not of the write.

import Media
import Units

struct CrashImageBuilder {
    private(set) var content: SparseContent
    private(set) var size: ByteCount
    /// Covers everything that arrived; leaves out what did not, so that a write that was issued later
    /// and did not arrive makes no difference.
    private(set) var fingerprint: UInt64 = 0
    private let pending: [PendingChange]
    private var generator: SeededGenerator

    init(power: PowerState, generator: SeededGenerator) {
        content = power.durable
        size = power.durableSize
        pending = power.pending
        self.generator = generator
    }

    mutating func build(_ mode: CrashMode, ordinal: Int) {
        switch mode {
        case .none: break
        case .all: arrive { _ in true }
        case .prefix: arrive { $0 <= ordinal }
        case .dropOne: arrive { $0 != ordinal }
        case .keepOne: arrive { $0 == ordinal }
        case .everySubset: arrive { ordinal >> $0 & 1 == 1 }
        case .randomSubset:
            let percent = [10, 50, 90][generator.below(3)]
            for number in pending.indices where generator.chance(percent, in: 100) { arriveWhole(number) }
        case .tornSectors: tear { _ in 512 }
        case .tornWords: tear { $0.length.rawValue <= 4096 ? 8 : 512 }
        case .persistentMemory: evictLines()
        }
        dropWhatLiesBehindTheEnd()
    }

    /// Writes that arrived in a range that the medium did not grow to in time.
    private mutating func dropWhatLiesBehindTheEnd() {
        let hasResize = pending.contains { if case .resize = $0 { true } else { false } }
        if hasResize { content.truncate(to: size.rawValue) }
    }

    private mutating func arrive(where isChosen: (Int) -> Bool) {
        for number in pending.indices where isChosen(number) { arriveWhole(number) }
    }

    private mutating func arriveWhole(_ number: Int) {
        note(UInt64(number), 0)
        switch pending[number] {
        case .write(let record): for piece in record.pieces { content.apply(piece) }
        case .resize(let newSize):
            if newSize < size { content.truncate(to: newSize.rawValue) }
            size = newSize
        }
    }

    private mutating func note(_ number: UInt64, _ part: UInt64) {
        fingerprint = SeededGenerator.mix(fingerprint ^ (number &+ 1) &* 0x9E37_79B9_7F4A_7C15) ^ part
    }

    // MARK: - Torn writes

    /// Each write is missing, whole or torn; torn ones in a few runs (a transfer that was cut off) or
    /// unit by unit (a device that writes in any order).
    private mutating func tear(unit: (WriteRecord) -> Int) {
        for number in pending.indices {
            guard case .write(let record) = pending[number] else {
                if generator.chance(1, in: 2) { arriveWhole(number) }
                continue
            }
            switch generator.below(4) {
            case 0: break
            case 1: arriveWhole(number)
            default: arriveTorn(record, number: number, unit: unit(record))
            }
        }
    }

    private mutating func arriveTorn(_ record: WriteRecord, number: Int, unit: Int) {
        let first = record.offset.rawValue / UInt64(unit)
        let end = (record.offset.rawValue + record.length.rawValue + UInt64(unit) - 1) / UInt64(unit)
        let count = Int(end - first)
        let units = generator.chance(1, in: 2) ? generator.runs(below: count) : generator.scattered(below: count)
        note(UInt64(number), UInt64(unit))
        for range in units { note(UInt64(range.lowerBound), UInt64(range.upperBound)) }
        var next = 0
        for piece in record.pieces {
            let blockStart = piece.index * UInt64(Block.size)
            var arrived: [Range<Int>] = []
            while next < units.count {
                // Byte positions relative to the block; they may reach beyond it on both sides.
                let base = Int(Int64(first * UInt64(unit)) - Int64(blockStart))
                let range = base + units[next].lowerBound * unit..<base + units[next].upperBound * unit
                if range.lowerBound >= piece.range.upperBound { break }
                let clamped = range.clamped(to: piece.range)
                if !clamped.isEmpty { arrived.append(clamped) }
                if range.upperBound > piece.range.upperBound { break }
                next += 1
            }
            if arrived == [piece.range] {
                content.apply(piece)
            } else if !arrived.isEmpty {
                content.apply(piece, only: arrived)
            }
        }
    }

    // MARK: - Persistent memory

    /// Per 64-byte line, the stores that have arrived are a first part of those made: a mask per block
    /// says on which lines everything so far has arrived, and later stores can arrive on those alone.
    private mutating func evictLines() {
        var intact: [UInt64: UInt64] = [:]
        let density = generator.below(3)
        for number in pending.indices {
            guard case .write(let record) = pending[number] else {
                if generator.chance(1, in: 2) { arriveWhole(number) }
                continue
            }
            for piece in record.pieces {
                let touched = CrashImageBuilder.lines(of: piece.range)
                let open = intact[piece.index, default: .max] & touched
                let arrived = open & generator.bits(density: density)
                intact[piece.index] = intact[piece.index, default: .max] & (arrived | ~touched)
                evict(piece, arrived: arrived, torn: open & ~arrived, number: number)
            }
        }
    }

    private mutating func evict(_ piece: Piece, arrived: UInt64, torn: UInt64, number: Int) {
        var ranges = arrived.runs.map { ($0.lowerBound * 64..<$0.upperBound * 64).clamped(to: piece.range) }
        // One line of those that did not arrive as a whole has its first stores there.
        if torn != 0, generator.chance(1, in: 2) {
            let line = torn.runs[generator.below(torn.runs.count)].lowerBound * 64
            let range = (line..<line + 8 * (1 + generator.below(7))).clamped(to: piece.range)
            if !range.isEmpty { ranges.append(range) }
        }
        guard !ranges.isEmpty else { return }
        note(UInt64(number), piece.index)
        for range in ranges { note(UInt64(range.lowerBound), UInt64(range.upperBound)) }
        if ranges == [piece.range] { content.apply(piece) } else { content.apply(piece, only: ranges) }
    }

    /// The lines of a block that a byte range touches, as bits.
    private static func lines(of range: Range<Int>) -> UInt64 {
        let first = range.lowerBound / 64
        let count = (range.upperBound - 1) / 64 - first + 1
        return (count == 64 ? .max : (1 << UInt64(count)) - 1) << UInt64(first)
    }
}

extension UInt64 {
    /// The runs of one bits, lowest first.
    var runs: [Range<Int>] {
        var runs: [Range<Int>] = []
        var position = 0
        while position < 64 {
            let rest = self >> UInt64(position)
            if rest == 0 { break }
            let start = position + rest.trailingZeroBitCount
            let count = (~(self >> UInt64(start))).trailingZeroBitCount
            runs.append(start..<Swift.min(64, start + count))
            position = start + count
        }
        return runs
    }
}

extension SeededGenerator {
    /// 64 random bits, of which one in eight (density 0), every other (1) or seven in eight (2) are one.
    mutating func bits(density: Int) -> UInt64 {
        switch density {
        case 0: next() & next() & next()
        case 1: next()
        default: next() | next() | next()
        }
    }

    /// A few long runs within `0..<count`: at most four cuts, arrived and missing by turns.
    mutating func runs(below count: Int) -> [Range<Int>] {
        let cuts = ([0, count] + (0...below(4)).map { _ in below(count + 1) }).sorted()
        let first = below(2)
        return stride(from: first, to: cuts.count - 1, by: 2).map { cuts[$0]..<cuts[$0 + 1] }.filter { !$0.isEmpty }
    }

    /// Any units of `0..<count`, each on its own, joined to runs where they meet.
    mutating func scattered(below count: Int) -> [Range<Int>] {
        let density = below(3)
        var runs: [Range<Int>] = []
        for start in stride(from: 0, to: count, by: 64) {
            for run in bits(density: density).runs {
                let range = (start + run.lowerBound..<start + run.upperBound).clamped(to: 0..<count)
                if range.isEmpty { continue }
                if runs.last?.upperBound == range.lowerBound {
                    runs[runs.count - 1] = runs[runs.count - 1].lowerBound..<range.upperBound
                } else {
                    runs.append(range)
                }
            }
        }
        return runs
    }
}
