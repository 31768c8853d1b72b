// The rules that go beyond layout: names, features, what a slot's fields say together, tree arithmetic.

import PageCodec
import StoreFormat
import Testing
import Units

/// The code that `body` throws; nil for none.
func code(_ body: () throws(FormatError) -> Void) -> FormatError.Code? {
    do throws(FormatError) {
        try body()
        return nil
    } catch { return error.code }
}

@Suite struct `Rules for names` {
    @Test func `ordinary names are allowed, in any script and up to 255 bytes`() throws {
        for name in ["a", "night 1", "ä", "漢字", "🧊", "...", ".hidden", String(repeating: "x", count: 255), "a\u{A0}b", "\\"] {
            try Names.check(name)
        }
    }

    @Test func `what a listing or a path would trip over is refused`() {
        let long = String(repeating: "x", count: 256)
        for name in ["", ".", "..", "a/b", "/", "a\nb", "\0", "\u{7F}", "a\u{85}", "\u{1B}[31m", long, String(repeating: "漢", count: 86)] {
            #expect(code { () throws(FormatError) in try Names.check(name) } == .badField, "\(name.debugDescription)")
        }
    }

    @Test func `names are bytes: canonically equivalent ones differ`() {
        let (composed, decomposed) = ("\u{E4}", "a\u{308}")
        #expect(composed == decomposed && !Names.equal(composed, decomposed))
        #expect(Names.precedes(decomposed, composed) && !Names.precedes(composed, decomposed))
        #expect(Names.precedes("Z", "a") && Names.precedes("a", "ab"))
    }

    @Test func `text that is not UTF-8 is refused`() {
        var bytes = Samples.pinned(Vectors.commitRecord)
        bytes[88] = 0xFF
        bytes = repaired(bytes, kind: .commitRecord)
        #expect(code { () throws(FormatError) in _ = unsafe try CommitRecord.decode(bytes.span.bytes) } == .badField)
    }
}

@Suite struct `Rules for checkpoint records` {
    private func refusal(_ change: (inout CheckpointRecord) -> Void) -> FormatError.Code? {
        var record = Samples.record
        change(&record)
        return code { () throws(FormatError) in try record.check() }
    }

    @Test func `a record that breaks a rule is refused before it is written`() {
        #expect(refusal { _ in } == nil)
        #expect(refusal { $0.parent = $0.id } == .badField)
        #expect(refusal { $0.name = "a/b" } == .badField)
        #expect(refusal { $0.labels.reverse() } == .badField)
        #expect(refusal { $0.labels[1].key = "host" } == .badField)
        #expect(refusal { $0.labels[0].key = "" } == .badField)
        #expect(refusal { $0.labels[0].value = String(repeating: "v", count: 70_000) } == .wrongLength)
        #expect(refusal { $0.regions.swapAt(0, 1) } == .badField)
        #expect(refusal { $0.regions[1] = $0.regions[0] } == .badField)
        #expect(refusal { $0.regions[0].key = RegionKey(1) } == .badField)
        #expect(refusal { $0.regions[0].depth = 1 } == .badField)
        #expect(refusal { $0.regions[0].root = Samples.recordPointer } == .badField)
        #expect(refusal { $0.regions[0].root = nil } == .badField)
        #expect(refusal { $0.regions[2].byteLength = ByteCount(5000) } == .badField)
        #expect(refusal { $0.regions[2].byteLength = ByteCount(UInt64.max) } == .badField)
        #expect(refusal { $0.regions[1].byteLength = .zero; $0.regions[1].depth = 0 } == nil)
        #expect(refusal { $0.regions[0].byteLength = .zero; $0.regions[0].storedPages = .zero } == .badField)
        #expect(refusal { $0.regions[0].storedPages = PageCount(3) } == .badField)
    }

    @Test func `a record's birth is its id`() {
        var bytes = Samples.record.encoded()
        Block.seal(&bytes, kind: .checkpointRecord, birth: BlockBirth(5))
        #expect(code { () throws(FormatError) in _ = unsafe try CheckpointRecord.decode(bytes.span.bytes) } == .wrongBirth)
    }
}

@Suite struct `Rules for slots` {
    private func refusal(
        position: Int = 11, twin: UInt8 = 1, _ change: (inout Slot) -> Void
    ) -> FormatError.Code? {
        var slot = Samples.slot
        change(&slot)
        return code { () throws(FormatError) in
            _ = unsafe try Slot.decode(slot.encoded(twin: 1).span.bytes, position: position, twin: twin)
        }
    }

    private func refusal(of bytes: [UInt8]) -> FormatError? {
        do throws(FormatError) {
            _ = unsafe try Slot.decode(repairedSlot(bytes).span.bytes, position: 11, twin: 1)
            return nil
        } catch { return error }
    }

    @Test func `twins differ in the twin field and the checksum only`() {
        let (a, b) = (Samples.slot.encoded(twin: 0), Samples.slot.encoded(twin: 1))
        let differing = a.indices.filter { a[$0] != b[$0] }
        #expect(differing.allSatisfy { (8..<24).contains($0) || $0 == 26 } && differing.contains(26))
    }

    @Test func `a slot elsewhere than in its place is misplaced`() {
        #expect(refusal { _ in } == nil)
        #expect(refusal(position: 10) { _ in } == .misplaced)
        #expect(refusal(twin: 0) { _ in } == .misplaced)
        #expect(refusal { $0.generation = Generation(44) } == .misplaced)
    }

    @Test func `a slot that no writer may write is refused`() {
        #expect(refusal { $0.baseGeneration = Generation(42) } == .badField)
        #expect(refusal { $0.kind = .poisoned } == .badField)
        #expect(refusal { ($0.kind, $0.baseGeneration) = (.poisoned, Generation(42)) } == nil)
        #expect(refusal { $0.geometry.segmentSize = 4096 } == .badField)
        #expect(refusal { $0.geometry.segmentSize += 4096 } == .badField)
        #expect(refusal { $0.geometry.commitUnit = 12288 } == .badField)
        #expect(refusal { $0.geometry.segmentCount = 0 } == .badField)
        #expect(refusal { $0.geometry.twinOffset = MediumOffset(1 << 15) } == .badField)
        #expect(refusal { $0.geometry.segmentCount = 10_000 } == nil)
        #expect(refusal { $0.geometry.segmentCount = 50 } == .badField)
        #expect(refusal { $0.catalogByName = nil } == .badField)
        #expect(refusal { $0.checkpointCount = 0 } == .badField)
        #expect(refusal { $0.checkpointCount = 1 << 63 } == .badField)
        // 11 modulo 16, as all slots here.
        for (generation, expected) in [(Slot.generationLimit - 5, nil), (Slot.generationLimit + 11, FormatError.Code.badField)] {
            #expect(refusal { ($0.generation, $0.baseGeneration) = (Generation(generation), Generation(generation)) } == expected)
        }
        #expect(refusal { $0.segmentTable = $0.catalogByID } == .badField)
        #expect(refusal { $0.segmentTable = nil } == .badField)
        #expect(refusal { $0.usedSegments = 1001 } == .badField)
        #expect(refusal { $0.catalogSegment = SegmentIndex(1000) } == .badField)
        #expect(refusal { $0.catalogSegment = nil } == nil)
        #expect(refusal { $0.allocationHint = SegmentIndex(1000) } == .badField)
        #expect(refusal { $0.catalogByID?.segment = SegmentIndex(1000) } == .badField)
        #expect(refusal { $0.catalogByID?.offset = SegmentOffset(2_097_152 - 64) } == .badField)
    }

    @Test func `another version or an unknown feature is unsupported, not damage, and is named`() throws {
        var bytes = Samples.slot.encoded(twin: 1)
        bytes[28] = 2
        #expect(refusal(of: bytes)?.code == .unsupportedVersion)
        var slot = Samples.slot
        slot.incompat |= 1 << 9 | 1 << 63
        slot.featureNames.append(FeatureName(mask: .incompat, bit: 9, name: "twin-runs"))
        slot.featureNames.append(FeatureName(mask: .compat, bit: 63, name: "not this one"))
        let error = try #require(refusal(of: slot.encoded(twin: 1)))
        #expect(error.code == .unknownFeature)
        #expect(error.reason.hasSuffix(": \"twin-runs\", bit 63"))
        #expect(code { () throws(FormatError) in try Feature.check(slot) } == .unknownFeature)
        try Feature.check(Samples.slot)
        // Damage is damage, whatever else the slot says.
        var damaged = slot.encoded(twin: 1)
        damaged[2000] ^= 1
        #expect(code { () throws(FormatError) in
            _ = unsafe try Slot.decode(damaged.span.bytes, position: 11, twin: 1)
        } == .badChecksum)
    }

    @Test func `an unknown read-only feature asks for reading only`() {
        #expect(!Feature.requiresReadOnly(Samples.slot))
        #expect(refusal { $0.readOnlyCompat |= 1 << 3 } == nil)
        var slot = Samples.slot
        slot.readOnlyCompat |= 1 << 3
        #expect(Feature.requiresReadOnly(slot))
    }

    @Test func `known features have names`() {
        #expect(Feature.names(incompat: 1, readOnlyCompat: 0, compat: 0).map(\.name) == ["draft"])
        #expect(Feature.names(incompat: 0, readOnlyCompat: 1, compat: 1).map(\.name) == ["lineage"])
        #expect(Feature.names(incompat: Feature.knownIncompat, readOnlyCompat: 0, compat: 0).count == Feature.knownIncompat.nonzeroBitCount)
    }

    @Test func `forwarding and lineage are there just when their features say so`() {
        #expect(refusal { $0.forwarding = nil } == .badField)
        #expect(refusal { $0.incompat = 0 } == .badField)
        #expect(refusal { ($0.forwarding, $0.incompat) = (nil, 0) } == nil)
        #expect(refusal { $0.lineage = nil } == .badField)
        #expect(refusal { $0.readOnlyCompat = 0 } == .badField)
        // A store without checkpoints has no lineage; a draft has none in any case.
        #expect(refusal { ($0.checkpointCount, $0.catalogByID, $0.catalogByName) = (0, nil, nil) } == .badField)
        #expect(refusal { ($0.checkpointCount, $0.catalogByID, $0.catalogByName, $0.lineage) = (0, nil, nil, nil) } == nil)
        #expect(refusal { ($0.incompat, $0.readOnlyCompat, $0.forwarding, $0.lineage) = (Feature.draft, 0, nil, nil) } == nil)
        #expect(refusal { ($0.incompat, $0.readOnlyCompat, $0.forwarding) = (Feature.draft, 0, nil) } == .badField)
        #expect(refusal { $0.forwarding = $0.segmentTable } == .badField)
        #expect(refusal { $0.lineage?.segment = SegmentIndex(1000) } == .badField)
    }

    @Test func `a draft store is for reading only`() {
        var slot = Samples.slot
        slot.incompat |= Feature.draft
        #expect(Feature.requiresReadOnly(slot))
    }

    @Test func `entries of the lineage that no writer may write are refused`() {
        let id = [UInt8](repeating: 0, count: 7) + [5]
        let zeros = [UInt8](repeating: 0, count: 8)
        func refusal(_ key: [UInt8], _ value: [UInt8]) -> FormatError.Code? {
            code { () throws(FormatError) in _ = try LineageEntry.decode(key: key, value: value) }
        }
        let node = [UInt8](repeating: 0, count: 8) + [1] + [UInt8](repeating: 0, count: 7)
        #expect(refusal(id + zeros, node) == nil)
        #expect(refusal(id + zeros, Array(node.dropLast())) == .badField)
        #expect(refusal(id + zeros, zeros + [3] + Array(node[9...])) == .badField)
        #expect(refusal(id + zeros, id.reversed() + Array(node[8...])) == .badField)
        #expect(refusal(id + zeros + [0], node) == .badField)
        #expect(refusal(id + id, []) == .badField)
        #expect(refusal(id + zeros.dropLast() + [6], []) == nil)
        #expect(refusal(id + zeros.dropLast() + [6], [0]) == .badField)
        #expect(refusal(zeros + Array("latest".utf8), id.reversed()) == nil)
        #expect(refusal(zeros + Array("latest".utf8), zeros) == .badField)
        #expect(refusal(zeros + Array("a/b".utf8), id.reversed()) == .badField)
        #expect(refusal(zeros + [0xFF], id.reversed()) == .badField)
        #expect(refusal(zeros, id.reversed()) == .badField)
    }

    @Test func `feature names with wrong masks, bits or lengths are refused`() {
        for (offset, value) in [(516, UInt8(0)), (516, 4), (517, 64), (518, 0), (518, 30), (519, 7), (513, 1)] {
            var bytes = Samples.slot.encoded(twin: 1)
            bytes[offset] = value
            #expect(refusal(of: bytes)?.code == .badField, "byte \(offset)")
        }
    }
}

@Suite struct `Arithmetic of the trees` {
    @Test func `depths are the smallest that suffice`() {
        let depths: [(UInt64, UInt8)] = [
            (0, 0), (1, 0), (512, 0), (513, 1), (65536, 1), (65537, 2), (8_388_608, 2), (8_388_609, 3), (1 << 51, 6),
        ]
        for (pages, depth) in depths {
            #expect(PageTree.depth(pageCount: PageCount(pages)) == depth, "\(pages) pages")
        }
        let tableDepths: [(UInt32, UInt8)] = [(1, 0), (64, 0), (65, 1), (4096, 1), (4097, 2), (1 << 30, 4), (.max, 5)]
        for (segments, depth) in tableDepths {
            #expect(Geometry.tableDepth(segmentCount: segments) == depth, "\(segments) segments")
        }
    }

    @Test func `children are found where FORMAT.md says`() {
        #expect(PageTree.pagesPerChild(level: 1) == PageCount(512) && PageTree.pagesPerChild(level: 3) == PageCount(512 << 14))
        #expect(PageTree.childIndex(of: PageIndex(512 * 129 + 5), level: 1) == 1)
        #expect(PageTree.childIndex(of: PageIndex(512 * 129 + 5), level: 2) == 1)
        #expect(SegmentTable.childIndex(of: SegmentIndex(64 * 64 + 64 * 3 + 5), level: 1) == 3)
        #expect(SegmentTable.childIndex(of: SegmentIndex(64 * 64 + 64 * 3 + 5), level: 2) == 1)
    }

    @Test func `blocks are where the geometry says`() throws {
        let geometry = Samples.slot.geometry
        #expect(geometry.dataOffset == MediumOffset(2 << 20))
        #expect(geometry.position(of: Samples.runPointer) == MediumOffset((2 << 20) + 7 * 2_097_152 + 576))
        #expect(geometry.requiredSize == ByteCount((2 << 20) + 1000 * 2_097_152))
        try geometry.check(Samples.runPointer)
        let largest = Geometry(
            segmentSize: 1 << 30, commitUnit: 65536, segmentCount: .max, twinOffset: MediumOffset(1 << 24))
        try largest.check()
        #expect(largest.requiredSize == ByteCount((1 << 25) + (UInt64(UInt32.max) << 30)))
    }

    @Test func `classes hold the kinds that FORMAT.md lists`() {
        #expect(BlockKind.allCases.map { SegmentClass(holding: $0) } == [
            .runs, .index, .index, .index, .index, .catalog, .catalog, .catalog, nil, nil, .catalog,
        ])
    }
}

@Suite struct `Rules for catalog values` {
    @Test func `flags, generation 0 and another checkpoint's record are refused`() {
        for (offset, value) in [(40, UInt8(0)), (48, 1), (51, 0x80)] {
            var bytes = Samples.pinned(Vectors.catalogValue)
            bytes[offset] = value
            #expect(code { () throws(FormatError) in _ = try CatalogValue.decode(bytes) } == .badField, "byte \(offset)")
        }
        var node = Samples.catalogByID
        node.entries[0].key = CatalogTree.key(CheckpointID(1))
        #expect(code { () throws(FormatError) in
            _ = unsafe try CatalogNode.decode(node.encoded(birth: BlockBirth(43)).span.bytes)
        } == .badField)
    }
}

@Suite struct `Rules for pointers` {
    private func refusal(_ offset: Int, _ bytes: [UInt8]) -> FormatError.Code? {
        var pointer = Samples.pinned(Vectors.pointer)
        pointer.replaceSubrange(offset..<(offset + bytes.count), with: bytes)
        return code { () throws(FormatError) in _ = unsafe try BlockPointer.decode(pointer.span.bytes) }
    }

    @Test func `a pointer that no block can have is refused`() {
        #expect(refusal(0, []) == nil)
        #expect(refusal(4, [1]) == .badField)
        for offset: UInt8 in [0, 64] { #expect(refusal(4, [offset, 0]) == .badField, "offset \(offset)") }
        #expect(refusal(4, [128, 0]) == nil)
        #expect(refusal(8, [31, 0, 0, 0]) == .wrongLength)
        #expect(refusal(8, [0, 0, 0, 0]) == .badField)
        #expect(refusal(8, [0, 0, 0, 1]) == .wrongLength)
        for kind: UInt8 in [0, 9, 10, 11, 255] { #expect(refusal(12, [kind]) == .badField, "kind \(kind)") }
        #expect(refusal(12, [2, 1]) == .badField)
        #expect(refusal(13, [2]) == .badField)
        #expect(refusal(14, [1]) == .badField)
        let bytes = Samples.pinned(Vectors.pointer)
        for position in [-1, 1, 40, 41, Int.max, Int.min] {
            #expect(code { () throws(FormatError) in
                _ = unsafe try BlockPointer.decode(bytes.span.bytes, at: position)
            } == .truncated, "at \(position)")
        }
    }
}
