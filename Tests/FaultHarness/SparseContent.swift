// The bytes of a simulated medium, sparse, and cheap to take a copy of.
//
// Invariants:
// - A block never changes once it exists, so any number of contents, log events and crash images
//   share it; a write puts a new block in the old one's place.
// - A content is `base` overlaid by `changes`. Copies share both; writing to a copy clones `changes`
//   alone, which `consolidate` keeps small. So an image costs what differs, not what the medium holds.
// - What was never written reads as zeros.

import Foundation

/// 4 KiB of content. Immutable after `init`.
@safe final class Block: @unchecked Sendable {
    static let size = 4096
    static let zero = unsafe Block { unsafe memset($0, 0, size) }

    private let storage: UnsafeMutableRawPointer

    /// Makes a block whose every byte `fill` sets.
    init(_ fill: (UnsafeMutableRawPointer) -> Void) {
        unsafe storage = UnsafeMutableRawPointer.allocate(byteCount: Block.size, alignment: 64)
        unsafe fill(storage)
    }

    deinit { unsafe storage.deallocate() }

    /// The bytes, valid as long as the block lives.
    var bytes: UnsafeRawPointer { unsafe UnsafeRawPointer(storage) }

    /// This block with `ranges` (byte ranges within the block) taken from `newer`.
    func replacing(_ ranges: [Range<Int>], from newer: Block) -> Block {
        unsafe Block { target in
            unsafe memcpy(target, bytes, Block.size)
            for range in ranges {
                unsafe memcpy(target + range.lowerBound, newer.bytes + range.lowerBound, range.count)
            }
        }
    }
}

/// The part of a write that falls into one block; `block` holds its bytes in their place.
struct Piece: Sendable {
    var index: UInt64
    var range: Range<Int>
    var block: Block
    var isWhole: Bool { range.count == Block.size }
}

/// Sparse bytes addressed from 0; knows nothing of a capacity.
struct SparseContent: Sendable {
    private var base: [UInt64: Block] = [:]
    private var changes: [UInt64: Block] = [:]

    /// The block with this number, or nil where nothing was ever written.
    subscript(index: UInt64) -> Block? { changes[index] ?? base[index] }

    /// The numbers of all blocks that were ever written, in no order.
    var blockIndexes: Set<UInt64> { Set(base.keys).union(changes.keys) }

    mutating func replace(_ index: UInt64, with block: Block) { changes[index] = block }

    /// Puts one piece of a write in its place.
    mutating func apply(_ piece: Piece) {
        changes[piece.index] =
            piece.isWhole ? piece.block : (self[piece.index] ?? .zero).replacing([piece.range], from: piece.block)
    }

    /// Puts only some byte ranges of a piece in their place; the ranges lie within `piece.range`.
    mutating func apply(_ piece: Piece, only ranges: [Range<Int>]) {
        changes[piece.index] = (self[piece.index] ?? .zero).replacing(ranges, from: piece.block)
    }

    /// Folds the changes into the base when they have become many. To be called on a long-lived
    /// content before copies are taken: O(1) amortised per changed block.
    mutating func consolidate() {
        guard changes.count > 64 else { return }
        base.merge(changes) { $1 }
        changes = [:]
    }

    /// Turns everything from `size` on into zeros.
    mutating func truncate(to size: UInt64) {
        for index in blockIndexes where (index + 1) * UInt64(Block.size) > size {
            let start = index * UInt64(Block.size)
            guard start < size, let block = self[index] else {
                changes[index] = .zero
                continue
            }
            changes[index] = block.replacing([Int(size - start)..<Block.size], from: .zero)
        }
    }

    /// Copies bytes from `offset` on into all of `buffer`.
    func read(at offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) {
        var done = 0
        while done < buffer.count {
            let position = offset + UInt64(done)
            let start = Int(position % UInt64(Block.size))
            let count = min(Block.size - start, buffer.count - done)
            let target = unsafe buffer.baseAddress! + done
            if let block = self[position / UInt64(Block.size)] {
                unsafe memcpy(target, block.bytes + start, count)
            } else {
                unsafe memset(target, 0, count)
            }
            done += count
        }
    }

    /// Cuts `bytes`, to be written at `offset`, into pieces.
    static func pieces(of bytes: UnsafeRawBufferPointer, at offset: UInt64) -> [Piece] {
        var pieces: [Piece] = []
        var done = 0
        while done < bytes.count {
            let position = offset + UInt64(done)
            let start = Int(position % UInt64(Block.size))
            let count = min(Block.size - start, bytes.count - done)
            let source = unsafe bytes.baseAddress! + done
            let block = unsafe Block { target in
                if count < Block.size { unsafe memset(target, 0, Block.size) }
                unsafe memcpy(target + start, source, count)
            }
            pieces.append(Piece(index: position / UInt64(Block.size), range: start..<start + count, block: block))
            done += count
        }
        return pieces
    }

    /// Pieces that put `block` everywhere in the range, partly at its ends.
    static func pieces(filling range: Range<UInt64>, with block: Block) -> [Piece] {
        var pieces: [Piece] = []
        var position = range.lowerBound
        while position < range.upperBound {
            let start = Int(position % UInt64(Block.size))
            let count = Int(min(UInt64(Block.size - start), range.upperBound - position))
            pieces.append(Piece(index: position / UInt64(Block.size), range: start..<start + count, block: block))
            position += UInt64(count)
        }
        return pieces
    }
}
