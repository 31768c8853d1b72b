// Random values survive encoding and decoding.

import PageCodec
import StoreFormat
import Testing
import Units

@Suite struct `Random values survive a round trip` {
    @Test func `all blocks that pointers name`() throws {
        var random = SeededRandom()
        for round in 0..<200 {
            let seed: Comment = "seed \(random.seed), round \(round)"
            let birth = BlockBirth(random.next())
            let leaf = random.leaf()
            #expect(unsafe try Leaf.decode(leaf.encoded(birth: birth).span.bytes) == leaf, seed)
            #expect(leaf.encoded(birth: birth).count == leaf.encodedLength, seed)
            let patch = random.patchLeaf()
            #expect(unsafe try PatchLeaf.decode(patch.encoded(birth: birth).span.bytes) == patch, seed)
            #expect(patch.encoded(birth: birth).count == patch.encodedLength, seed)
            let inner = random.inner()
            #expect(unsafe try InnerNode.decode(inner.encoded(birth: birth).span.bytes) == inner, seed)
            let record = random.record()
            #expect(unsafe try CheckpointRecord.decode(record.encoded().span.bytes) == record, seed)
            #expect(record.encoded().count == record.encodedLength, seed)
            let node = random.catalogNode()
            #expect(unsafe try CatalogNode.decode(node.encoded(birth: birth).span.bytes) == node, seed)
            #expect(node.encoded(birth: birth).count == node.encodedLength, seed)
            let table = random.tableLeaf()
            #expect(unsafe try TableLeaf.decode(table.encoded(birth: birth).span.bytes) == table, seed)
            let tableInner = random.tableInner()
            #expect(unsafe try TableInner.decode(tableInner.encoded(birth: birth).span.bytes) == tableInner, seed)
        }
    }

    @Test func `segment marks, pointers and slots`() throws {
        var random = SeededRandom()
        for round in 0..<200 {
            let seed: Comment = "seed \(random.seed), round \(round)"
            let header = random.segmentHeader()
            #expect(unsafe try SegmentHeader.decode(header.encoded().span.bytes) == header, seed)
            let commit = random.commitRecord()
            #expect(unsafe try CommitRecord.decode(commit.encoded().span.bytes) == commit, seed)
            let slot = random.slot()
            let bytes = slot.encoded(twin: slot.twin)
            let position = Slot.position(of: slot.generation)
            #expect(unsafe try Slot.decode(bytes.span.bytes, position: position, twin: slot.twin) == slot, seed)
            let value = CatalogValue(
                record: random.pointer(.checkpointRecord), generation: Generation(random.next() | 1))
            #expect(try CatalogValue.decode(value.encoded()) == value, seed)
        }
    }

    @Test func `page runs with their pages, raw and compressed`() throws {
        var random = SeededRandom()
        var compressor = RunCompressor()
        for round in 0..<50 {
            let seed: Comment = "seed \(random.seed), round \(round)"
            let pages = random.ascending(1 + random.below(16), below: 512).map { UInt16($0) }
            var content = random.bytes(pages.count * 64)
            content = (0..<64).flatMap { _ in content }
            var compressed = [UInt8](repeating: 0, count: content.count)
            let length = unsafe content.withUnsafeBytes { source in
                unsafe compressed.withUnsafeMutableBytes { unsafe compressor.compress(source, into: $0) }
            }
            let isCompressed = round % 2 == 0
            let header = PageRunHeader(
                regionKey: RegionKey(random.next()), span: random.span(), codec: isCompressed ? .lz4 : .raw, pages: pages)
            let payload = isCompressed ? try compressed[..<#require(length, seed)] : content[...]
            let run = Samples.sealedRun(header, payload: payload)
            #expect(unsafe try PageRunHeader.decode(run.span.bytes) == header, seed)
            #expect(run[(56 + 2 * pages.count)..<header.payloadOffset].allSatisfy { $0 == 0 }, "padding is zero; \(seed)")
            guard isCompressed else { continue }
            var again = [UInt8](repeating: 1, count: content.count)
            let stored = [UInt8](run[header.payloadOffset...])
            let isWhole = unsafe stored.withUnsafeBytes { source in
                unsafe again.withUnsafeMutableBytes { unsafe decompress(source, into: $0) }
            }
            #expect(isWhole && again == content, seed)
        }
    }

    @Test func `ids, hashes and UUIDs have texts that parse back`() throws {
        var random = SeededRandom()
        for _ in 0..<100 {
            let seed: Comment = "seed \(random.seed)"
            let id = CheckpointID(random.next() >> UInt64(random.below(60)) | 1)
            #expect(id.description.count == 16 && CheckpointID(hex: id.description) == id, seed)
            #expect(CatalogTree.id(ofKey: CatalogTree.key(id)) == id, seed)
            #expect(CatalogTree.id(ofValue: CatalogTree.value(id)) == id, seed)
            let uuid = StoreUUID.random()
            #expect(StoreUUID(uuid.description) == uuid && StoreUUID(bytes: uuid.bytes) == uuid, "\(uuid)")
        }
        #expect(Samples.uuid.description == "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf")
        for text in ["", "a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaea", "a0a1a2a3a4a5a6a7a8a9aaabacadaeaf", "+0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf"] {
            #expect(StoreUUID(text) == nil, "\(text)")
        }
        for text in ["", "0", "0000000000000000", "+123456789abcdef", "0123456789abcdef0", "0123456789abcdeg", "０123456789abcde"] {
            #expect(CheckpointID(hex: text) == nil, "\(text)")
        }
        #expect(Samples.hash(1).description == "100f0e0d0c0b0a090807060504030201")
        #expect(CheckpointID.random() != CheckpointID.random())
    }
}
