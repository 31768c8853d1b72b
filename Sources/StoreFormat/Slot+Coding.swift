// Bytes of a slot, and back.
//
// Invariant: magic, checksum and place are checked first; only a slot that is right in these may be called
// unsupported instead of damaged.

import PageCodec
import Units

extension Slot {
    /// The 4096 bytes of this slot for ring A (`twin` 0) or B (1), with their checksum; `self.twin` is not
    /// looked at. More than 111 feature names are a programmer's mistake.
    public func encoded(twin: UInt8) -> [UInt8] {
        precondition(twin <= 1, "there are two rings")
        precondition(featureNames.count <= Self.maximumFeatureNames, "a slot has room for 111 feature names")
        var writer = ByteWriter(length: Self.encodedLength)
        writer.put(Self.magic)
        writer.put(Hash128.zero)
        writer.put(UInt16(Self.position(of: generation)))
        writer.put(twin)
        writer.put(kind.rawValue)
        writer.put(Self.formatVersion)
        writer.put(uuid.bytes)
        writer.put(generation)
        writer.put(incompat)
        writer.put(readOnlyCompat)
        writer.put(compat)
        encodeGeometry(into: &writer)
        writer.put(pageHashSeed)
        writer.put(commitTimeNanoseconds)
        for root in [catalogByID, catalogByName, segmentTable, forwarding, lineage] { writer.put(root) }
        encodeCounters(into: &writer)
        encodeFeatureNames(into: &writer)
        writer.pad(to: Self.encodedLength)
        var bytes = writer.bytes
        let checksum = unsafe hash128(bytes.span.bytes.extracting(24...))
        var sealed = ByteWriter(length: 16)
        sealed.put(checksum)
        bytes.replaceSubrange(8..<24, with: sealed.bytes)
        return bytes
    }

    private func encodeGeometry(into writer: inout ByteWriter) {
        writer.put(geometry.segmentSize)
        writer.put(geometry.commitUnit)
        writer.put(geometry.segmentCount)
        writer.put(geometry.tableDepth)
        writer.pad(3)
        writer.put(geometry.twinOffset)
        writer.put(geometry.dataOffset)
    }

    private func encodeCounters(into writer: inout ByteWriter) {
        writer.put(checkpointCount)
        writer.put(usedSegments)
        writer.put(catalogSegment.map { UInt32($0.rawValue) } ?? Self.noSegment)
        writer.put(index: allocationHint)
        writer.put(reserveSegments)
        writer.put(eraseUnit)
        writer.put(baseGeneration)
        writer.pad(144)
    }

    private func encodeFeatureNames(into writer: inout ByteWriter) {
        writer.put(UInt16(featureNames.count))
        writer.put(UInt16(0))
        for name in featureNames {
            precondition(name.name.utf8.count <= FeatureName.maximumNameLength, "a feature's name has at most 29 bytes")
            let end = writer.bytes.count + FeatureName.encodedLength
            writer.put(name.mask.rawValue)
            writer.put(name.bit)
            writer.put(UInt8(name.name.utf8.count))
            writer.put(name.name.utf8)
            writer.pad(to: end)
        }
    }

    /// Decodes the 4096 bytes that were read at `position` of ring `twin`, and checks every field.
    ///
    /// - Throws: `.truncated`, `.wrongLength`, `.badMagic`, `.badChecksum`, `.misplaced`: not a valid slot.
    ///   `.unsupportedVersion`, `.unknownFeature`: a valid slot that this version can't use. `.badField`:
    ///   a valid slot that no writer may write.
    public static func decode(_ bytes: RawSpan, position: Int, twin: UInt8) throws(FormatError) -> Slot {
        try checkValid(bytes, position: position, twin: twin)
        guard bytes.u32(28) == formatVersion else {
            throw FormatError(
                .unsupportedVersion, subject: subject,
                reason: "the store is of format version \(bytes.u32(28)), this program knows \(formatVersion)")
        }
        let incompat = bytes.u64(56)
        try Feature.check(incompat: incompat, names: (try? featureNames(bytes)) ?? [])
        guard let kind = SlotKind(rawValue: bytes.u8(27)) else {
            throw FormatError(.badField, subject: subject, reason: "kind \(bytes.u8(27))")
        }
        let catalogSegment = bytes.u32(340)
        let slot = Slot(
            kind: kind, twin: twin, uuid: StoreUUID(bytes, at: 32), generation: Generation(bytes.u64(48)),
            incompat: incompat, readOnlyCompat: bytes.u64(64), compat: bytes.u64(72), geometry: try geometry(bytes),
            pageHashSeed: bytes.u64(112), commitTimeNanoseconds: bytes.u64(120),
            catalogByID: try BlockPointer.decode(bytes, at: 128), catalogByName: try BlockPointer.decode(bytes, at: 168),
            segmentTable: try BlockPointer.decode(bytes, at: 208), forwarding: try BlockPointer.decode(bytes, at: 248),
            lineage: try BlockPointer.decode(bytes, at: 288), checkpointCount: bytes.u64(328),
            usedSegments: bytes.u32(336),
            catalogSegment: catalogSegment == noSegment ? nil : SegmentIndex(UInt64(catalogSegment)),
            allocationHint: SegmentIndex(UInt64(bytes.u32(344))), reserveSegments: bytes.u32(348),
            eraseUnit: ByteCount(bytes.u64(352)), baseGeneration: Generation(bytes.u64(360)),
            featureNames: try featureNames(bytes))
        try slot.check()
        return slot
    }

    /// The generation of a slot that is valid (magic, checksum and place are right), whatever its other fields say; nil
    /// when it is not valid.
    public static func sealedGeneration(_ bytes: RawSpan, position: Int, twin: UInt8) -> Generation? {
        guard (try? checkValid(bytes, position: position, twin: twin)) != nil else { return nil }
        return Generation(bytes.u64(48))
    }

    /// Magic, checksum and place: what makes a slot valid.
    private static func checkValid(_ bytes: RawSpan, position: Int, twin: UInt8) throws(FormatError) {
        try bytes.requireExactly(encodedLength, subject)
        guard bytes.u64(0) == magic else {
            throw FormatError(.badMagic, subject: subject, reason: "no magic of a slot")
        }
        guard hash128(bytes.extracting(24...)) == bytes.hash(8) else {
            throw FormatError(.badChecksum, subject: subject, reason: "the bytes are not those that were written")
        }
        let generation = Generation(bytes.u64(48))
        guard Int(bytes.u16(24)) == position, Self.position(of: generation) == position, bytes.u8(26) == twin else {
            throw FormatError(
                .misplaced, subject: subject,
                reason: "generation \(generation), place \(bytes.u16(24)) of ring \(bytes.u8(26)), "
                    + "found at place \(position) of ring \(twin)")
        }
    }

    /// Forwarding and lineage, and the feature bits that announce them.
    private func checkFeatureRoots() throws(FormatError) {
        let subject = Self.subject
        let (isDraft, hasLineage) = (incompat & Feature.draft != 0, readOnlyCompat & Feature.lineage != 0)
        try StoreFormat.check(
            (forwarding != nil) == (incompat & Feature.forwarding != 0), subject, "a forwarding root and feature that don't agree")
        try StoreFormat.check(isDraft || hasLineage, subject, "no lineage, which every store has that is no draft")
        try StoreFormat.check(
            (lineage != nil) == (hasLineage && checkpointCount > 0), subject,
            "\(checkpointCount) checkpoints, but the lineage differs")
        try checkRoot(forwarding, kind: .catalogNode)
        try checkRoot(lineage, kind: .catalogNode)
    }

    private static func geometry(_ bytes: RawSpan) throws(FormatError) -> Geometry {
        let geometry = Geometry(
            segmentSize: bytes.u32(80), commitUnit: bytes.u32(84), segmentCount: bytes.u32(88),
            twinOffset: MediumOffset(bytes.u64(96)))
        try geometry.check()
        try StoreFormat.check(bytes.u64(104) == geometry.dataOffset.rawValue, subject, "data at \(bytes.u64(104))")
        try StoreFormat.check(bytes.u8(92) == geometry.tableDepth, subject, "table depth \(bytes.u8(92))")
        return geometry
    }

    private static func featureNames(_ bytes: RawSpan) throws(FormatError) -> [FeatureName] {
        let count = Int(bytes.u16(512))
        try StoreFormat.check(count <= maximumFeatureNames, subject, "\(count) feature names")
        var names: [FeatureName] = []
        for i in 0..<count {
            let at = featureNamesStart + i * FeatureName.encodedLength
            let length = Int(bytes.u8(at + 2))
            guard let mask = FeatureMask(rawValue: bytes.u8(at)), length <= FeatureName.maximumNameLength else {
                throw FormatError(.badField, subject: subject, reason: "the name of a feature")
            }
            let name = FeatureName(
                mask: mask, bit: bytes.u8(at + 1), name: try bytes.text(at + 3, count: length, subject))
            try name.check()
            names.append(name)
        }
        return names
    }

    /// Throws `.badField` unless the fields keep the rules of the format.
    public func check() throws(FormatError) {
        let subject = Self.subject
        try geometry.check()
        try StoreFormat.check(
            generation.rawValue >= 1 && generation.rawValue < Self.generationLimit, subject, "generation \(generation)")
        try StoreFormat.check(checkpointCount <= UInt64(Int64.max), subject, "\(checkpointCount) checkpoints")
        let base = baseGeneration.rawValue
        try StoreFormat.check(
            kind == .commit ? base == generation.rawValue : base >= 1 && base < generation.rawValue, subject,
            "base generation \(baseGeneration) in generation \(generation)")
        for root in [catalogByID, catalogByName] {
            try StoreFormat.check(
                (root == nil) == (checkpointCount == 0), subject, "\(checkpointCount) checkpoints, but the catalog differs")
            try checkRoot(root, kind: .catalogNode)
        }
        try checkRoot(segmentTable, kind: geometry.tableDepth == 0 ? .tableLeaf : .tableInner)
        try StoreFormat.check(
            usedSegments <= geometry.segmentCount && (usedSegments == 0 || segmentTable != nil), subject,
            "\(usedSegments) used segments of \(geometry.segmentCount)")
        for segment in [catalogSegment, allocationHint].compactMap(\.self) {
            try StoreFormat.check(
                segment.rawValue < UInt64(geometry.segmentCount), subject, "segment \(segment) of \(geometry.segmentCount)")
        }
        try checkFeatureRoots()
        for name in featureNames { try name.check() }
    }

    private func checkRoot(_ root: BlockPointer?, kind: BlockKind) throws(FormatError) {
        guard let root else { return }
        try StoreFormat.check(root.kind == kind, Self.subject, "a root is a \(root.kind), not a \(kind)")
        try geometry.check(root)
    }
}
