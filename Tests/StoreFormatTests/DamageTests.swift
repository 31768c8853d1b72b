// Damaged bytes are refused: flipped bits, cut ends, blocks that are somebody else's.

import PageCodec
import StoreFormat
import Testing
import Units

@Suite struct `Damage is refused` {
    @Test func `sound blocks pass, and are what their pointers say`() throws {
        for sample in Samples.blocks {
            let pointer = Samples.pointer(to: sample)
            unsafe try Block.verify(sample.bytes.span.bytes, pointer: pointer)
            let padded = sample.bytes + [1, 2, 3]
            let header = unsafe try Block.peek(padded.span.bytes)
            #expect(header.kind == sample.kind && header.checksum == pointer.checksum, "\(sample.name)")
            #expect(header.storedLength == pointer.storedLength && header.birth == pointer.birth, "\(sample.name)")
            #expect(unsafe try sample.recoded(sample.bytes.span.bytes) == sample.bytes, "\(sample.name)")
        }
    }

    @Test func `every flipped bit of every block is noticed`() {
        for sample in Samples.blocks {
            let pointer = Samples.pointer(to: sample)
            var bytes = sample.bytes
            for bit in 0..<(bytes.count * 8) {
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                let isAccepted = unsafe (try? Block.verify(bytes.span.bytes, pointer: pointer)) != nil
                let isSeen = unsafe (try? Block.peek(bytes.span.bytes)) != nil
                bytes[bit / 8] ^= 1 << UInt8(bit % 8)
                if isAccepted || isSeen { Issue.record("\(sample.name): bit \(bit) flips unnoticed") }
            }
        }
    }

    @Test func `every flipped bit of a slot is noticed`() {
        var bytes = Samples.pinned(Vectors.slot)
        for bit in 0..<(bytes.count * 8) {
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
            if unsafe (try? Slot.decode(bytes.span.bytes, position: 11, twin: 1)) != nil {
                Issue.record("bit \(bit) flips unnoticed")
            }
            bytes[bit / 8] ^= 1 << UInt8(bit % 8)
        }
    }

    @Test func `every cut end is noticed, by the checks and by the decoders alone`() {
        for sample in Samples.blocks {
            let pointer = Samples.pointer(to: sample)
            for length in 0..<sample.bytes.count {
                let cut = [UInt8](sample.bytes[..<length])
                #expect(throws: FormatError.self, "\(sample.name) cut to \(length)") {
                    unsafe try Block.verify(cut.span.bytes, pointer: pointer)
                }
                #expect(throws: FormatError.self, "\(sample.name) cut to \(length)") {
                    unsafe try Block.peek(cut.span.bytes)
                }
                #expect(throws: FormatError.self, "\(sample.name) cut to \(length)") {
                    unsafe try sample.recoded(cut.span.bytes)
                }
                // The cut payload of a compressed run is the decompressor's to refuse.
                if sample.kind == .run && length > Samples.run.payloadOffset { continue }
                #expect(throws: FormatError.self, "\(sample.name) cut to \(length) and sealed again") {
                    unsafe try sample.recoded(repaired(cut, kind: sample.kind).span.bytes)
                }
            }
        }
    }

    @Test func `a longer block than its fields need is refused`() {
        for sample in Samples.blocks where sample.kind != .run {
            let longer = repaired(sample.bytes + [0], kind: sample.kind)
            #expect(throws: FormatError.self, "\(sample.name)") { unsafe try sample.recoded(longer.span.bytes) }
        }
    }

    @Test func `a sound block that is not the one named is refused, saying why`() {
        func code(_ bytes: [UInt8], _ pointer: BlockPointer) -> FormatError.Code? {
            do throws(FormatError) {
                unsafe try Block.verify(bytes.span.bytes, pointer: pointer)
                return nil
            } catch { return error.code }
        }
        let leaf = Samples.leaf.encoded(birth: Samples.birth)
        let pointer = BlockPointer(sealed: leaf, kind: .leaf, segment: SegmentIndex(1), offset: SegmentOffset(128))
        #expect(code(leaf, pointer) == nil)
        #expect(code(Samples.leaf.encoded(birth: BlockBirth(5)), pointer) == .wrongBirth)
        var other = Samples.leaf
        other.hashes[0] = Samples.hash(0x77)
        #expect(code(other.encoded(birth: Samples.birth), pointer) == .badChecksum)
        #expect(code(repaired(leaf, kind: .patchLeaf), pointer) == .wrongKind)
        #expect(code(leaf + [0], pointer) == .wrongLength)
        #expect(code([UInt8](leaf.dropLast()), pointer) == .truncated)
        var flipped = leaf
        flipped[100] ^= 1
        #expect(code(flipped, pointer) == .badChecksum)
        let run = Samples.pinned(Vectors.run)
        var runPointer = BlockPointer(sealed: run, kind: .run, segment: SegmentIndex(1), offset: SegmentOffset(128))
        #expect(code(run, runPointer) == nil)
        runPointer.codec = .raw
        #expect(code(run, runPointer) == .badField)
    }

    @Test func `a block in the wrong place of a tree is refused`() throws {
        try Samples.leaf.checkPlace(regionKey: Samples.key, span: SpanIndex(5))
        try Samples.patchLeaf.checkPlace(regionKey: Samples.key, span: SpanIndex(5))
        try Samples.inner.checkPlace(regionKey: Samples.key, firstPage: Samples.inner.firstPage, level: 2)
        try Samples.catalogInner.checkPlace(tree: .byName, level: 1)
        try Samples.tableLeaf.checkPlace(firstSegment: SegmentIndex(128))
        try Samples.tableInner.checkPlace(firstSegment: SegmentIndex(524_288), level: 2)
        func isMisplaced(_ body: () throws(FormatError) -> Void) -> Bool {
            do throws(FormatError) {
                try body()
                return false
            } catch { return error.code == .misplaced }
        }
        let key = regionKey("other")
        #expect(isMisplaced { () throws(FormatError) in try Samples.leaf.checkPlace(regionKey: key, span: SpanIndex(5)) })
        #expect(
            isMisplaced { () throws(FormatError) in
                try Samples.patchLeaf.checkPlace(regionKey: Samples.key, span: SpanIndex(6))
            })
        #expect(
            isMisplaced { () throws(FormatError) in
                try Samples.inner.checkPlace(regionKey: Samples.key, firstPage: Samples.inner.firstPage, level: 1)
            })
        #expect(isMisplaced { () throws(FormatError) in try Samples.catalogInner.checkPlace(tree: .byID, level: 1) })
        #expect(
            isMisplaced { () throws(FormatError) in try Samples.tableLeaf.checkPlace(firstSegment: SegmentIndex(64)) })
        #expect(
            isMisplaced { () throws(FormatError) in
                try Samples.tableInner.checkPlace(firstSegment: SegmentIndex(524_288), level: 1)
            })
        let run = Samples.pinned(Vectors.run)
        for (key, span, page, position) in [
            (key, UInt64(5), UInt16(3), 0), (Samples.key, 6, 3, 0), (Samples.key, 5, 3, 1), (Samples.key, 5, 5, 1),
            (Samples.key, 5, 3, 3), (Samples.key, 5, 3, -1),
        ] {
            #expect(
                isMisplaced { () throws(FormatError) in
                    _ = unsafe try PageRunHeader.check(
                        run.span.bytes, regionKey: key, span: SpanIndex(span), page: page, at: position)
                })
        }
        let fields = unsafe try PageRunHeader.check(
            run.span.bytes, regionKey: Samples.key, span: SpanIndex(5), page: 500, at: 2)
        #expect(fields == (.lz4, 3, 64))
    }
}
