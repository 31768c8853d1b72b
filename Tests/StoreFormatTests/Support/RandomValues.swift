// Random values of every structure, within the rules of the format.

import PageCodec
import StoreFormat
import Units

extension SeededRandom {
    mutating func hash() -> Hash128 { Hash128(low: next(), high: next()) }

    mutating func pointer(_ kind: BlockKind, birth: UInt64? = nil) -> BlockPointer {
        let codec: RunCodec = kind == .run && below(2) == 0 ? .lz4 : .raw
        return BlockPointer(
            segment: SegmentIndex(next() >> 32), offset: SegmentOffset(128 + below(1 << 24) * 64),
            storedLength: UInt32(32 + below(kind.maximumLength - 31)), kind: kind, codec: codec,
            birth: BlockBirth(birth ?? next()), checksum: hash())
    }

    mutating func name() -> String {
        let letters = Array("abcdefghijklmnopqrstuvwxyz0123456789 ._-äß漢🧊")
        var name = "n"
        for _ in 0..<below(40) { name.append(letters[below(letters.count)]) }
        return name
    }

    mutating func names(_ count: Int) -> [String] {
        var names: [String] = []
        while names.count < count {
            let name = name()
            if !names.contains(where: { Names.equal($0, name) }) { names.append(name) }
        }
        return names.sorted(by: Names.precedes)
    }

    mutating func span() -> SpanIndex { SpanIndex(next() >> 22) }

    mutating func leaf() -> Leaf {
        let runs = (0..<(1 + below(20))).map { _ in pointer(.run) }
        var extents: [Extent] = []
        var page = 0
        repeat {
            page += below(60)
            let count = 1 + below(min(16, 512 - page))
            extents.append(
                Extent(
                    firstPage: UInt16(page), pageCount: UInt8(count), pageOffset: UInt8(below(17 - count)),
                    runIndex: UInt16(below(runs.count))))
            page += count
        } while page < 440
        let pages = extents.reduce(0) { $0 + Int($1.pageCount) }
        return Leaf(
            regionKey: RegionKey(next()), span: span(), runs: runs, extents: extents,
            hashes: (0..<pages).map { _ in hash() })
    }

    mutating func patchLeaf() -> PatchLeaf {
        let runs = (0..<below(65)).map { _ in pointer(.run) }
        let entries = ascending(1 + below(64), below: 512).map { page in
            runs.isEmpty || below(4) == 0
                ? PatchEntry(page: UInt16(page), run: nil, pageOffset: 0, hash: .zero)
                : PatchEntry(
                    page: UInt16(page), run: UInt16(below(runs.count)), pageOffset: UInt8(below(16)), hash: hash())
        }
        return PatchLeaf(regionKey: RegionKey(next()), span: span(), base: pointer(.leaf), runs: runs, entries: entries)
    }

    mutating func children(_ places: Int, _ kinds: [BlockKind]) -> [BlockPointer?] {
        var children = [BlockPointer?](repeating: nil, count: places)
        for place in ascending(1 + below(places), below: places) { children[place] = pointer(kinds[below(kinds.count)]) }
        return children
    }

    mutating func inner() -> InnerNode {
        let level = UInt8(1 + below(6))
        let range = PageTree.pagesPerChild(level: level).rawValue * 128
        let ranges = (UInt64(1) << 51) / range
        return InnerNode(
            regionKey: RegionKey(next()), firstPage: PageIndex(next() % ranges * range), level: level,
            children: children(128, level == 1 ? [.leaf, .patchLeaf] : [.inner]))
    }

    mutating func region(_ name: String) -> RegionRecord {
        let kind = RegionKind.allCases[below(3)]
        var length = next() >> UInt64(1 + below(63))
        if kind == .memory { length &= ~4095 }
        let pages = PageCount(covering: ByteCount(length))
        let depth = PageTree.depth(pageCount: pages)
        let isZero = below(4) == 0 || length == 0
        return RegionRecord(
            name: name, kind: kind, depth: depth, byteLength: ByteCount(length), key: regionKey(name),
            root: isZero ? nil : pointer(depth == 0 ? [.leaf, .patchLeaf][below(2)] : .inner),
            storedPages: isZero ? .zero : PageCount(next() % (pages.rawValue + 1)), newPages: PageCount(next()))
    }

    mutating func record() -> CheckpointRecord {
        let keys = names(below(5))
        let regionNames = names(below(30))
        return CheckpointRecord(
            id: CheckpointID(next() | 1), parent: below(2) == 0 ? nil : CheckpointID(next() & ~1 | 2),
            createdNanoseconds: next(), baseGeneration: Generation(next()), name: name(),
            labels: keys.map { Label(key: $0, value: name()) }, newPages: PageCount(next()),
            storedBytes: ByteCount(next()), groupID: next(), regions: regionNames.map { region($0) })
    }

    mutating func lineageNode() -> CatalogNode {
        let entries: [LineageEntry] = (0..<1 + below(20)).map { _ in
            let (a, b) = (CheckpointID(next() | 1), CheckpointID(next() & ~1 | 2))
            switch below(3) {
            case 0: return .node(a, parent: below(2) == 0 ? nil : b, LineageState.allCases[below(2)])
            case 1: return .edge(parent: a, child: b)
            default: return .reference(name(), a)
            }
        }
        let unique = Dictionary(entries.map { ($0.key.bytes, $0.value) }, uniquingKeysWith: { first, _ in first })
        return CatalogNode(
            tree: .lineage, level: 0,
            entries: unique.sorted { $0.key.lexicographicallyPrecedes($1.key) }.map { .init(key: $0.key, payload: .leaf($0.value)) })
    }

    mutating func catalogNode() -> CatalogNode {
        if below(3) == 0 { return lineageNode() }
        let tree = CatalogTree.allCases[below(2)]
        let level = UInt8(below(2) == 0 ? 0 : 1 + below(15))
        let count = 1 + below(20)
        let keys =
            tree == .byID
            ? Set((0..<count).map { _ in next() | 1 }).sorted().map { CatalogTree.key(CheckpointID($0)) }
            : names(count).map { CatalogTree.key($0) }
        return CatalogNode(
            tree: tree, level: level,
            entries: keys.map { key in
                if level > 0 { return .init(key: key, payload: .child(pointer(.catalogNode))) }
                let id = CatalogTree.id(ofKey: key)?.rawValue
                let value = CatalogValue(record: pointer(.checkpointRecord, birth: id), generation: Generation(next() | 1))
                return .init(
                    key: key, payload: .leaf(tree == .byID ? value.encoded() : CatalogTree.value(CheckpointID(next() | 1))))
            })
    }

    mutating func segmentEntry() -> SegmentEntry {
        switch below(3) {
        case 0: .neverUsed
        case 1:
            SegmentEntry(
                isUsed: false, segmentClass: SegmentClass.allCases[below(3)], committedLength: 0, live: 0, written: 0,
                birth: BlockBirth(next()), freedGeneration: Generation(next()))
        default:
            SegmentEntry(
                isUsed: true, segmentClass: SegmentClass.allCases[below(3)], committedLength: UInt32(below(1 << 30)),
                live: UInt32(below(1 << 20)), written: UInt32(below(1 << 22)), birth: BlockBirth(next()), freedGeneration: Generation(0))
        }
    }

    mutating func tableLeaf() -> TableLeaf {
        TableLeaf(
            firstSegment: SegmentIndex((next() >> 38) << 6), entries: (0..<64).map { _ in segmentEntry() })
    }

    mutating func tableInner() -> TableInner {
        let level = UInt8(1 + below(5))
        let range = SegmentTable.segmentsPerNode(level: level)
        return TableInner(
            firstSegment: SegmentIndex((next() >> 32) / range * range), level: level,
            children: children(64, level == 1 ? [.tableLeaf] : [.tableInner]))
    }

    mutating func segmentHeader() -> SegmentHeader {
        SegmentHeader(
            storeUUID: StoreUUID(bytes: bytes(16)), segment: SegmentIndex(next() >> 32),
            segmentClass: SegmentClass.allCases[below(3)], baseGeneration: Generation(next()),
            segmentSize: UInt32(below(1 << 30)), birth: BlockBirth(next()))
    }

    mutating func commitRecord() -> CommitRecord {
        let (birth, first) = (next(), below(1 << 23) * 64)
        return CommitRecord(
            record: pointer(.checkpointRecord, birth: birth), segment: SegmentIndex(next() >> 32),
            firstOffset: SegmentOffset(first), endOffset: SegmentOffset(first + 1 + below(1 << 20)), name: name(),
            birth: BlockBirth(birth))
    }

    mutating func geometry() -> Geometry {
        let unit = UInt32(4096) << UInt32(below(5))
        let units = UInt64(131_072 / unit)...UInt64(1_073_741_824 / unit)
        return Geometry(
            segmentSize: UInt32(units.lowerBound + next() % UInt64(units.count)) * unit, commitUnit: unit,
            segmentCount: UInt32(1 + (next() >> 32) >> UInt64(below(32))) | 1,
            twinOffset: Geometry.twinOffsets[below(9)])
    }

    mutating func slot() -> Slot {
        let geometry = geometry()
        func within(_ kind: BlockKind, _ random: inout SeededRandom) -> BlockPointer {
            var pointer = random.pointer(kind)
            pointer.segment = SegmentIndex(random.next() % UInt64(geometry.segmentCount))
            pointer.offset = SegmentOffset(128 + random.below(1000) * 64)
            return pointer
        }
        let kind = SlotKind.allCases[below(2)]
        let generation = (next() >> UInt64(24 + below(36))) | 2
        let isEmpty = below(4) == 0
        let (isDraft, isForwarding) = (below(4) == 0, below(2) == 0)
        let features = (next(), next())
        return Slot(
            kind: kind, twin: UInt8(below(2)), uuid: .random(), generation: Generation(generation),
            incompat: (isDraft ? Feature.draft : 0) | (isForwarding ? Feature.forwarding : 0),
            readOnlyCompat: isDraft ? features.0 & ~Feature.lineage : features.0 | Feature.lineage, compat: features.1, geometry: geometry, pageHashSeed: next(),
            commitTimeNanoseconds: next(), catalogByID: isEmpty ? nil : within(.catalogNode, &self),
            catalogByName: isEmpty ? nil : within(.catalogNode, &self),
            segmentTable: within(geometry.tableDepth == 0 ? .tableLeaf : .tableInner, &self),
            forwarding: isForwarding ? within(.catalogNode, &self) : nil,
            lineage: isEmpty || isDraft ? nil : within(.catalogNode, &self),
            checkpointCount: isEmpty ? 0 : next() >> 1 | 1, usedSegments: UInt32(next() % UInt64(geometry.segmentCount)),
            catalogSegment: isEmpty ? nil : SegmentIndex(next() % UInt64(geometry.segmentCount)),
            allocationHint: SegmentIndex(next() % UInt64(geometry.segmentCount)), reserveSegments: UInt32(next() >> 32),
            eraseUnit: ByteCount(next()), baseGeneration: Generation(kind == .commit ? generation : generation - 1),
            featureNames: (0..<below(112)).map { i in
                FeatureName(mask: FeatureMask.allCases[below(3)], bit: UInt8(below(64)), name: "feature \(i)")
            })
    }
}
