// The layout of every structure, pinned byte by byte.

import StoreFormat
import Testing
import Units

@Suite struct `The pinned bytes of every structure` {
    @Test func `encoding a sample gives its pinned bytes`() {
        let payload = Samples.pinned(Vectors.run)[64...]
        #expect(Samples.sealedRun(Samples.run, payload: payload) == Samples.pinned(Vectors.run))
        #expect(Samples.leaf.encoded(birth: Samples.birth) == Samples.pinned(Vectors.leaf))
        #expect(Samples.patchLeaf.encoded(birth: Samples.birth) == Samples.pinned(Vectors.patchLeaf))
        #expect(Samples.inner.encoded(birth: Samples.birth) == Samples.pinned(Vectors.inner))
        #expect(Samples.record.encoded() == Samples.pinned(Vectors.checkpointRecord))
        #expect(Samples.catalogByID.encoded(birth: BlockBirth(43)) == Samples.pinned(Vectors.catalogByID))
        #expect(Samples.catalogByName.encoded(birth: BlockBirth(43)) == Samples.pinned(Vectors.catalogByName))
        #expect(Samples.catalogInner.encoded(birth: BlockBirth(44)) == Samples.pinned(Vectors.catalogInner))
        #expect(Samples.catalogValue.encoded() == Samples.pinned(Vectors.catalogValue))
        #expect(Samples.tableLeaf.encoded(birth: BlockBirth(43)) == Samples.pinned(Vectors.tableLeaf))
        #expect(Samples.tableInner.encoded(birth: BlockBirth(43)) == Samples.pinned(Vectors.tableInner))
        #expect(Samples.segmentHeader.encoded() == Samples.pinned(Vectors.segmentHeader))
        #expect(Samples.commitRecord.encoded() == Samples.pinned(Vectors.commitRecord))
        #expect(Samples.lineage.encoded(birth: BlockBirth(43)) == Samples.pinned(Vectors.lineage))
        #expect(Samples.movedRecord.encoded() == Samples.pinned(Vectors.movedRecord))
        #expect(Samples.slot.encoded(twin: 1) == Samples.pinned(Vectors.slot))
    }

    @Test func `decoding pinned bytes gives the sample`() throws {
        #expect(unsafe try PageRunHeader.decode(Samples.pinned(Vectors.run).span.bytes) == Samples.run)
        #expect(unsafe try Leaf.decode(Samples.pinned(Vectors.leaf).span.bytes) == Samples.leaf)
        #expect(unsafe try PatchLeaf.decode(Samples.pinned(Vectors.patchLeaf).span.bytes) == Samples.patchLeaf)
        #expect(unsafe try InnerNode.decode(Samples.pinned(Vectors.inner).span.bytes) == Samples.inner)
        #expect(unsafe try CheckpointRecord.decode(Samples.pinned(Vectors.checkpointRecord).span.bytes) == Samples.record)
        #expect(unsafe try CatalogNode.decode(Samples.pinned(Vectors.catalogByID).span.bytes) == Samples.catalogByID)
        #expect(unsafe try CatalogNode.decode(Samples.pinned(Vectors.catalogByName).span.bytes) == Samples.catalogByName)
        #expect(unsafe try CatalogNode.decode(Samples.pinned(Vectors.catalogInner).span.bytes) == Samples.catalogInner)
        #expect(try CatalogValue.decode(Samples.pinned(Vectors.catalogValue)) == Samples.catalogValue)
        #expect(unsafe try TableLeaf.decode(Samples.pinned(Vectors.tableLeaf).span.bytes) == Samples.tableLeaf)
        #expect(unsafe try TableInner.decode(Samples.pinned(Vectors.tableInner).span.bytes) == Samples.tableInner)
        #expect(unsafe try SegmentHeader.decode(Samples.pinned(Vectors.segmentHeader).span.bytes) == Samples.segmentHeader)
        #expect(unsafe try CommitRecord.decode(Samples.pinned(Vectors.commitRecord).span.bytes) == Samples.commitRecord)
        #expect(unsafe try CatalogNode.decode(Samples.pinned(Vectors.lineage).span.bytes) == Samples.lineage)
        #expect(unsafe try CommitRecord.decode(Samples.pinned(Vectors.movedRecord).span.bytes) == Samples.movedRecord)
        let slot = unsafe try Slot.decode(Samples.pinned(Vectors.slot).span.bytes, position: 11, twin: 1)
        #expect(slot == Samples.slot)
        #expect(unsafe try BlockPointer.decode(Samples.pinned(Vectors.pointer).span.bytes) == Samples.runPointer)
        #expect(unsafe try BlockPointer.decode([UInt8](repeating: 0, count: 40).span.bytes) == nil)
    }

    @Test func `the magics are those of the table`() {
        let magics = BlockKind.allCases.map { kind in
            String(decoding: (0..<4).map { UInt8(truncatingIfNeeded: kind.magic >> (8 * $0)) }, as: UTF8.self)
        }
        #expect(magics == ["CKRN", "CKLF", "CKPL", "CKIN", "CKCP", "CKBT", "CKTL", "CKTI", "CKSG", "CKCM", "CKFT"])
        #expect(BlockKind.allCases.map(\.rawValue) == [UInt8](1...11))
        for kind in BlockKind.allCases { #expect(BlockKind(magic: kind.magic) == kind) }
        #expect(BlockKind(magic: 0) == nil)
    }

    @Test func `the longest block of each kind is what the fields add up to`() {
        let lengths = BlockKind.allCases.map(\.maximumLength)
        #expect(lengths == [65624, 32824, 4192, 5192, 65536, 4096, 2096, 2608, 128, 343, 24616])
    }
}
