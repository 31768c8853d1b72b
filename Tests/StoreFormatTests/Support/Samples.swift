// One value of every structure, beside its pinned bytes (Vectors.swift).

import PageCodec
import StoreFormat
import Units

/// A structure's pinned bytes with its kind, and what its decoder does with given bytes.
struct Sample: Sendable {
    var name: String
    var kind: BlockKind
    var bytes: [UInt8]
    /// Decodes and encodes again.
    var recoded: @Sendable (RawSpan) throws -> [UInt8]
}

enum Samples {
    static let id = CheckpointID(UInt64(0x0123_4567_89AB_CDEF))
    static let birth = BlockBirth(id)
    static let key = regionKey("ram")
    static let uuid = StoreUUID(bytes: [UInt8](0xA0..<0xB0))

    /// A hash whose bytes on the medium count up from `first`.
    static func hash(_ first: UInt8) -> Hash128 {
        func half(_ start: UInt8) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(start &+ UInt8($1)) << (8 * UInt64($1)) } }
        return Hash128(low: half(first), high: half(first &+ 8))
    }

    static func pointer(
        _ kind: BlockKind, codec: RunCodec = .raw, segment: UInt64, offset: UInt32, length: UInt32, birth: UInt64,
        hash first: UInt8
    ) -> BlockPointer {
        BlockPointer(
            segment: SegmentIndex(segment), offset: SegmentOffset(offset), storedLength: length, kind: kind, codec: codec,
            birth: BlockBirth(birth), checksum: hash(first))
    }

    static let runPointer = pointer(.run, codec: .lz4, segment: 7, offset: 576, length: 700, birth: id.rawValue, hash: 0x10)
    static let recordPointer = pointer(
        .checkpointRecord, segment: 3, offset: 1024, length: 333, birth: id.rawValue, hash: 0xB0)

    static let run = PageRunHeader(regionKey: key, span: SpanIndex(5), codec: .lz4, pages: [3, 4, 500])

    static let leaf = Leaf(
        regionKey: key, span: SpanIndex(5),
        runs: [runPointer, pointer(.run, segment: 8, offset: 4096, length: 8256, birth: id.rawValue - 1, hash: 0x20)],
        extents: [
            Extent(firstPage: 0, pageCount: 2, pageOffset: 1, runIndex: 0),
            Extent(firstPage: 510, pageCount: 2, pageOffset: 0, runIndex: 1),
        ],
        hashes: [0x30, 0x40, 0x50, 0x60].map(hash))

    static let patchLeaf = PatchLeaf(
        regionKey: key, span: SpanIndex(5),
        base: pointer(.leaf, segment: 1, offset: 128, length: 1000, birth: id.rawValue - 2, hash: 0x40),
        runs: [runPointer],
        entries: [
            PatchEntry(page: 5, run: 0, pageOffset: 15, hash: hash(0x70)),
            PatchEntry(page: 511, run: nil, pageOffset: 0, hash: .zero),
        ])

    static let inner: InnerNode = {
        var children = [BlockPointer?](repeating: nil, count: 128)
        for (i, place) in [(UInt64(1), 0), (2, 65), (3, 127)] {
            children[place] = pointer(
                .inner, segment: 2, offset: UInt32(64 + 64 * i), length: 600, birth: id.rawValue - i,
                hash: UInt8(0x50 + 16 * i))
        }
        return InnerNode(regionKey: key, firstPage: PageIndex(512 * 128 * 128 * 3), level: 2, children: children)
    }()

    static let record = CheckpointRecord(
        id: id, parent: CheckpointID(id.rawValue - 5), createdNanoseconds: 1_700_000_000_123_456_789,
        baseGeneration: Generation(41), name: "night 1",
        labels: [Label(key: "host", value: "a1"), Label(key: "note", value: "grün")], newPages: PageCount(18),
        storedBytes: ByteCount(99999), groupID: 77,
        regions: [
            RegionRecord(
                name: "cpu", kind: .state, depth: 0, byteLength: ByteCount(5000), key: regionKey("cpu"),
                root: pointer(.patchLeaf, segment: 3, offset: 192, length: 200, birth: id.rawValue, hash: 0x90),
                storedPages: PageCount(2), newPages: PageCount(1)),
            RegionRecord(
                name: "disk0", kind: .disk, depth: 3, byteLength: .gibibytes(1024), key: regionKey("disk0"), root: nil,
                storedPages: .zero, newPages: .zero),
            RegionRecord(
                name: "ram", kind: .memory, depth: 1, byteLength: .mebibytes(4), key: key,
                root: pointer(.inner, segment: 3, offset: 512, length: 112, birth: id.rawValue, hash: 0xA0),
                storedPages: PageCount(900), newPages: PageCount(17)),
        ])

    static let catalogValue = CatalogValue(record: recordPointer, generation: Generation(42))

    static let catalogByID = CatalogNode(
        tree: .byID, level: 0,
        entries: [
            .init(key: CatalogTree.key(id), payload: .leaf(catalogValue.encoded())),
            .init(
                key: CatalogTree.key(CheckpointID(id.rawValue + 1)),
                payload: .leaf(
                    CatalogValue(
                        record: pointer(
                            .checkpointRecord, segment: 4, offset: 2048, length: 333, birth: id.rawValue + 1, hash: 0xC0),
                        generation: Generation(43)
                    ).encoded())),
        ])

    static let catalogByName = CatalogNode(
        tree: .byName, level: 0,
        entries: [
            .init(key: CatalogTree.key("night 1"), payload: .leaf(CatalogTree.value(id))),
            .init(key: CatalogTree.key("ä"), payload: .leaf(CatalogTree.value(CheckpointID(id.rawValue + 1)))),
        ])

    static let catalogInner = CatalogNode(
        tree: .byName, level: 1,
        entries: [
            .init(
                key: [],
                payload: .child(pointer(.catalogNode, segment: 5, offset: 4096, length: 100, birth: 43, hash: 0xD0))),
            .init(
                key: [UInt8]("ni".utf8),
                payload: .child(pointer(.catalogNode, segment: 5, offset: 8192, length: 4096, birth: 44, hash: 0xE0))),
        ])

    /// A reference, a tombstone with two children, and those.
    static let lineage = CatalogNode(
        tree: .lineage, level: 0,
        entries: lineageEntries.map { .init(key: $0.key.bytes, payload: .leaf($0.value)) })

    static let lineageEntries: [LineageEntry] = [
        .reference("latest", CheckpointID(0x1122_3344_5566_7788)),
        .node(CheckpointID(2), parent: nil, .tombstone),
        .edge(parent: CheckpointID(2), child: CheckpointID(0x0102_0304_0506_0708)),
        .edge(parent: CheckpointID(2), child: CheckpointID(0x1122_3344_5566_7788)),
        .node(CheckpointID(0x0102_0304_0506_0708), parent: CheckpointID(2), .living),
        .node(CheckpointID(0x1122_3344_5566_7788), parent: CheckpointID(2), .living),
    ]

    static let tableLeaf: TableLeaf = {
        var entries = [SegmentEntry](repeating: .neverUsed, count: 64)
        entries[0] = SegmentEntry(
            isUsed: true, segmentClass: .runs, committedLength: 65536, live: 512, written: 700, birth: birth,
            freedGeneration: Generation(0))
        entries[1] = SegmentEntry(
            isUsed: true, segmentClass: .catalog, committedLength: 8192, live: 9, written: 9, birth: BlockBirth(43),
            freedGeneration: Generation(7))
        entries[2] = SegmentEntry(
            isUsed: false, segmentClass: .index, committedLength: 0, live: 0, written: 0, birth: BlockBirth(id.rawValue - 9),
            freedGeneration: Generation(40))
        entries[63] = SegmentEntry(
            isUsed: true, segmentClass: .index, committedLength: 2_097_152, live: 3, written: 0x0102_0304, birth: birth,
            freedGeneration: Generation(0))
        return TableLeaf(firstSegment: SegmentIndex(128), entries: entries)
    }()

    static let tableInner: TableInner = {
        var children = [BlockPointer?](repeating: nil, count: 64)
        children[0] = pointer(.tableInner, segment: 5, offset: 12288, length: 88, birth: 43, hash: 0xF0)
        children[63] = pointer(.tableInner, segment: 5, offset: 12352, length: 2608, birth: 42, hash: 0x01)
        return TableInner(firstSegment: SegmentIndex(64 * 64 * 64 * 2), level: 2, children: children)
    }()

    static let segmentHeader = SegmentHeader(
        storeUUID: uuid, segment: SegmentIndex(9), segmentClass: .index, baseGeneration: Generation(41),
        segmentSize: 2_097_152, birth: birth)

    static let commitRecord = CommitRecord(
        record: recordPointer, segment: SegmentIndex(9), firstOffset: SegmentOffset(4096), endOffset: SegmentOffset(9999),
        name: "night 1", birth: birth)

    /// Behind blocks that a compaction has moved.
    static let movedRecord = CommitRecord(
        record: nil, segment: SegmentIndex(10), firstOffset: SegmentOffset(128), endOffset: SegmentOffset(5000), name: "",
        birth: BlockBirth(0x7777_6666_5555_4444))

    static let slot = Slot(
        kind: .commit, twin: 1, uuid: uuid, generation: Generation(43), incompat: Feature.forwarding, readOnlyCompat: Feature.lineage,
        compat: 1 << 5,
        geometry: Geometry(
            segmentSize: 2_097_152, commitUnit: 8192, segmentCount: 1000, twinOffset: MediumOffset(1 << 20)),
        pageHashSeed: 0xFEDC_BA98_7654_3210, commitTimeNanoseconds: 1_700_000_000_987_654_321,
        catalogByID: pointer(.catalogNode, segment: 5, offset: 4096, length: 4000, birth: 43, hash: 0x11),
        catalogByName: pointer(.catalogNode, segment: 5, offset: 8192, length: 4096, birth: 43, hash: 0x22),
        segmentTable: pointer(.tableInner, segment: 5, offset: 12288, length: 88, birth: 43, hash: 0x33),
        forwarding: pointer(.catalogNode, segment: 5, offset: 12416, length: 96, birth: 42, hash: 0x44),
        lineage: pointer(.catalogNode, segment: 5, offset: 12544, length: 144, birth: 43, hash: 0x55),
        checkpointCount: 2, usedSegments: 17, catalogSegment: SegmentIndex(5), allocationHint: SegmentIndex(18),
        reserveSegments: 24, eraseUnit: .kibibytes(512), baseGeneration: Generation(43),
        featureNames: [
            FeatureName(mask: .incompat, bit: 1, name: "forwarding"),
            FeatureName(mask: .readOnlyCompat, bit: 0, name: "lineage"),
            FeatureName(mask: .compat, bit: 5, name: "fast-listen"),
        ])

    /// Every kind of block, with its pinned bytes.
    static let blocks: [Sample] = [
        Sample(name: "run", kind: .run, bytes: pinned(Vectors.run)) { span in
            try sealedRun(PageRunHeader.decode(span), payload: pinned(Vectors.run)[64...])
        },
        Sample(name: "leaf", kind: .leaf, bytes: pinned(Vectors.leaf)) { b in try Leaf.decode(b).encoded(birth: birth) },
        Sample(name: "patchLeaf", kind: .patchLeaf, bytes: pinned(Vectors.patchLeaf)) { b in
            try PatchLeaf.decode(b).encoded(birth: birth)
        },
        Sample(name: "inner", kind: .inner, bytes: pinned(Vectors.inner)) { b in
            try InnerNode.decode(b).encoded(birth: birth)
        },
        Sample(name: "record", kind: .checkpointRecord, bytes: pinned(Vectors.checkpointRecord)) { b in
            try CheckpointRecord.decode(b).encoded()
        },
        Sample(name: "catalogByID", kind: .catalogNode, bytes: pinned(Vectors.catalogByID)) { b in
            try CatalogNode.decode(b).encoded(birth: BlockBirth(43))
        },
        Sample(name: "catalogByName", kind: .catalogNode, bytes: pinned(Vectors.catalogByName)) { b in
            try CatalogNode.decode(b).encoded(birth: BlockBirth(43))
        },
        Sample(name: "catalogInner", kind: .catalogNode, bytes: pinned(Vectors.catalogInner)) { b in
            try CatalogNode.decode(b).encoded(birth: BlockBirth(44))
        },
        Sample(name: "lineage", kind: .catalogNode, bytes: pinned(Vectors.lineage)) { b in
            try CatalogNode.decode(b).encoded(birth: BlockBirth(43))
        },
        Sample(name: "movedRecord", kind: .commitRecord, bytes: pinned(Vectors.movedRecord)) { b in
            try CommitRecord.decode(b).encoded()
        },
        Sample(name: "tableLeaf", kind: .tableLeaf, bytes: pinned(Vectors.tableLeaf)) { b in
            try TableLeaf.decode(b).encoded(birth: BlockBirth(43))
        },
        Sample(name: "tableInner", kind: .tableInner, bytes: pinned(Vectors.tableInner)) { b in
            try TableInner.decode(b).encoded(birth: BlockBirth(43))
        },
        Sample(name: "segmentHeader", kind: .segmentHeader, bytes: pinned(Vectors.segmentHeader)) { b in
            try SegmentHeader.decode(b).encoded()
        },
        Sample(name: "commitRecord", kind: .commitRecord, bytes: pinned(Vectors.commitRecord)) { b in
            try CommitRecord.decode(b).encoded()
        },
    ]

    /// A whole run of these fields and that payload.
    static func sealedRun(_ header: PageRunHeader, payload: some Collection<UInt8>) -> [UInt8] {
        var block = [UInt8](repeating: 0xEE, count: header.payloadOffset) + payload
        unsafe block.withUnsafeMutableBytes { unsafe header.encode(into: $0) }
        Block.seal(&block, kind: .run, birth: birth)
        return block
    }

    /// The bytes of a text of `Vectors`.
    static func pinned(_ text: String) -> [UInt8] {
        text.split(whereSeparator: \.isWhitespace).flatMap { token -> [UInt8] in
            if token.hasPrefix("0*") { return [UInt8](repeating: 0, count: Int(token.dropFirst(2))!) }
            let digits = token.utf8.map { UInt8(Character(Unicode.Scalar($0)).hexDigitValue!) }
            return stride(from: 0, to: digits.count, by: 2).map { digits[$0] << 4 | digits[$0 + 1] }
        }
    }

    /// The pointer to a pinned block, wherever it stands.
    static func pointer(to sample: Sample) -> BlockPointer {
        BlockPointer(sealed: sample.bytes, kind: sample.kind, segment: SegmentIndex(1), offset: SegmentOffset(4096))
    }
}
