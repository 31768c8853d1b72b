// What this machine can do at best with the same pages: the limits that results are compared with.
//
// Invariant: each limit does nothing but what its name says, on warm buffers, with work handed out evenly.

import Glibc
import Media
import PageCodec
import Units

/// Measures the limits of one machine, medium and image. One method call is one round; each returns seconds.
struct BenchLimits: Sendable {
    let image: BenchImage
    let units: BenchUnits
    let target: BenchMemory
    let threads: Int

    private static let step = 2 << 20
    private static let seed: UInt64 = 0x5EED

    private func overImage(_ threads: Int, _ body: @escaping @Sendable (Range<Int>) -> Void) throws -> Double {
        let cursor = WorkCursor(image.memory.count, step: Self.step)
        return try seconds {
            try inBenchThreads(threads) { _ in while let piece = cursor.advance() { body(piece) } }
        }
    }

    private func overUnits(_ threads: Int, _ body: @escaping @Sendable (BenchUnits.Unit, BenchBuffers) throws -> Void) throws -> Double {
        let cursor = WorkCursor(units.units.count, step: 32)
        let buffers = try (0..<threads).map { _ in try BenchBuffers() }
        return try seconds {
            try inBenchThreads(threads) { number in
                while let piece = cursor.advance() {
                    for index in piece { try body(units.units[index], buffers[number]) }
                }
            }
        }
    }

    /// The image copied to resident memory.
    func memcpy(threads: Int) throws -> Double {
        let (image, target) = (image.memory, target)
        return try overImage(threads) { piece in
            unsafe target.writablePiece(piece).copyMemory(from: image.piece(piece))
        }
    }

    /// Every page tested for being zero.
    func zeroScan() throws -> Double {
        let image = image.memory
        return try overImage(threads) { piece in
            for start in stride(from: piece.lowerBound, to: piece.upperBound, by: pageSize) {
                unsafe keep(isZero(image.piece(start..<start + pageSize)) ? 1 : 0)
            }
        }
    }

    /// Every page hashed.
    func hash() throws -> Double {
        let image = image.memory
        return try overImage(threads) { piece in
            for start in stride(from: piece.lowerBound, to: piece.upperBound, by: pageSize) {
                keep(unsafe pageHash(UnsafeRawPointer(image.base + start), seed: Self.seed).low)
            }
        }
    }

    /// Every unit compressed.
    func compress(threads: Int) throws -> Double {
        let image = image
        return try overUnits(threads) { unit, buffers in
            keep(UInt64(buffers.compress(unit.pages[...], image)))
        }
    }

    /// Every unit decompressed in memory that is in the cache.
    func decompress(threads: Int) throws -> Double {
        let packed = units.packed
        return try overUnits(threads) { unit, buffers in
            let stored = unsafe packed.piece(unit.offset..<unit.offset + unit.length)
            unsafe try buffers.unpack(stored, unit, into: buffers.plain.writablePiece(0..<unit.byteCount))
        }
    }

    /// Zero test, page hash and compression, 2 MiB at a time: all that a full save has to compute.
    func compute() throws -> Double {
        let image = image
        let buffers = try (0..<threads).map { _ in try BenchBuffers() }
        let cursor = WorkCursor(image.memory.count, step: Self.step)
        return try seconds {
            try inBenchThreads(threads) { number in
                while let piece = cursor.advance() { Self.compute(image, piece, buffers[number]) }
            }
        }
    }

    private static func compute(_ image: BenchImage, _ piece: Range<Int>, _ buffers: BenchBuffers) {
        var pages: [Int] = []
        for start in stride(from: piece.lowerBound, to: piece.upperBound, by: pageSize)
        where unsafe !isZero(image.memory.piece(start..<start + pageSize)) {
            keep(unsafe pageHash(UnsafeRawPointer(image.memory.base + start), seed: seed).low)
            pages.append(start / pageSize)
        }
        for start in stride(from: 0, to: pages.count, by: pagesPerRun) {
            keep(UInt64(buffers.compress(pages[start..<min(start + pagesPerRun, pages.count)], image)))
        }
    }

    /// Every packed unit copied out, verified and decompressed into resident memory.
    func decode() throws -> Double {
        let (packed, target) = (units.packed, target)
        return try overUnits(threads) { unit, buffers in
            let stored = unsafe buffers.packed.writablePiece(0..<unit.length)
            unsafe stored.copyMemory(from: packed.piece(unit.offset..<unit.offset + unit.length))
            keep(unsafe hash128(UnsafeRawBufferPointer(stored)).low)
            let place = unit.pages[0] * pageSize
            let room = min(place + unit.byteCount, target.count) - unit.byteCount
            try unsafe buffers.unpack(UnsafeRawBufferPointer(stored), unit, into: target.writablePiece(room..<room + unit.byteCount))
        }
    }

    /// One byte written to each page of fresh memory of the image's size.
    func firstTouch() throws -> Double {
        let fresh = try BenchMemory(count: image.memory.count, isTouched: false)
        return try overImage(threads) { piece in
            for start in stride(from: piece.lowerBound, to: piece.upperBound, by: pageSize) {
                unsafe (fresh.base + start).storeBytes(of: 1, as: UInt8.self)
            }
        }
    }

    /// The packed bytes hashed, a unit at a time.
    func hashStored() throws -> Double {
        let packed = units.packed
        return try overUnits(threads) { unit, _ in
            keep(unsafe hash128(packed.piece(unit.offset..<unit.offset + unit.length)).low)
        }
    }

    // MARK: medium

    /// The packed bytes written from `threads` threads, 1 MiB at a time, to space that is reserved, and flushed.
    func mediumWrite(_ medium: any Medium, at place: MediumOffset, threads: Int) throws -> Double {
        try medium.reserve(at: place, ByteCount(units.packedSpan))
        let cursor = WorkCursor(units.packedSpan, step: 1 << 20)
        let packed = units.packed
        return try seconds {
            try inBenchThreads(threads) { _ in
                while let piece = cursor.advance() {
                    unsafe try medium.write(at: place + ByteCount(piece.lowerBound), packed.piece(piece))
                }
            }
            try medium.flush()
        }
    }

    /// Compute and medium write at once, as a save does both: shows what the one costs the other.
    func computeAndMediumWrite(_ medium: any Medium, at place: MediumOffset) throws -> Double {
        let limits = self
        try medium.reserve(at: place, ByteCount(units.packedSpan))
        return try seconds {
            try inBenchThreads(2) { number in
                if number == 0 {
                    _ = try limits.compute()
                } else {
                    _ = try limits.mediumWrite(medium, at: place, threads: limits.threads)
                }
            }
        }
    }

    /// The same bytes read back, 64 KiB at a time.
    func mediumRead(_ medium: any Medium, at place: MediumOffset) throws -> Double {
        let cursor = WorkCursor(units.packedSpan, step: 1 << 20)
        let buffers = try (0..<threads).map { _ in try BenchBuffers() }
        return try seconds {
            try inBenchThreads(threads) { number in
                while let piece = cursor.advance() {
                    for start in stride(from: piece.lowerBound, to: piece.upperBound, by: BenchUnits.unitBytes) {
                        let room = unsafe buffers[number].plain.writablePiece(0..<BenchUnits.unitBytes)
                        unsafe try medium.read(at: place + ByteCount(start), into: room)
                    }
                }
            }
        }
    }
}

/// The buffers of one measuring thread.
final class BenchBuffers: @unchecked Sendable {
    private var compressor = RunCompressor()
    let gathered: BenchMemory
    let plain: BenchMemory
    let packed: BenchMemory

    init() throws {
        gathered = try BenchMemory(count: BenchUnits.unitBytes, isTouched: true)
        plain = try BenchMemory(count: BenchUnits.unitBytes, isTouched: true)
        packed = try BenchMemory(count: BenchUnits.unitBytes, isTouched: true)
    }

    func compress(_ pages: ArraySlice<Int>, _ image: BenchImage) -> Int {
        let input = unsafe BenchUnits.gather(pages, image, gathered)
        return unsafe compressor.compress(input, into: packed.bytes) ?? 0
    }

    func unpack(_ stored: UnsafeRawBufferPointer, _ unit: BenchUnits.Unit, into room: UnsafeMutableRawBufferPointer) throws {
        if unit.isRaw {
            unsafe room.copyMemory(from: stored)
        } else if unsafe !decompress(stored, into: room) {
            throw systemError("unpack what was packed, by", "LZ4", EIO)
        }
    }
}

/// Keeps the compiler from leaving out what made `value`.
@inline(never) @_optimize(none) func keep(_ value: UInt64) {}
