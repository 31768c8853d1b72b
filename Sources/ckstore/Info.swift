// `ckstore info`.

import ArgumentParser
import CheckpointStore
import Media
import StoreFormat
import Units

struct Info: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Show where a store's space is, and what it stands on.",
        discussion: """
            Live space is what checkpoints reach, and the catalog; shared is the part of it that several checkpoints \
            reach. Dead space comes back when its segments are freed: by deleting what still lives in them, or by compacting them.

            Free space that is not given back yet still takes room on a file's disk: it was being read when it became free, or was never \
            committed. `ckstore compact` gives it back, and so does the next deletion.

            Segments hold blocks of one class: pages (runs), what leads to them (index), or what leads to checkpoints (catalog). \
            Headers and padding count as dead. The catalog's newest segment, where commits append, is mostly dead as a rule, and \
            is not compacted.

            Example:
              ckstore info vm.ck
              ckstore info vm.ck --segments
              ckstore info vm.ck --json | jq .compaction.gainedBytes
            """)

    @OptionGroup var target: StoreArgument
    @Flag(help: "List all segments in use too.")
    var segments = false
    @OptionGroup var generation: GenerationOption
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try open()
        defer { store.close() }
        let info = InfoObject(try store.info(), sizeBytes: store.medium.size.rawValue, listsSegments: segments)
        if output.json { return try StandardOutput.write(json: info) }
        try StandardOutput.write(info.text)
    }

    /// How a medium is written shows only when it is open for writing; who may not do that sees the rest.
    private func open() throws -> CheckpointStore {
        do { return try target.open(.readWrite, generation: generation.value) } catch let error as MediumError {
            guard [.permission, .readOnly].contains(error.code) else { throw error }
            return try target.open(.readOnly, generation: generation.value)
        }
    }
}

/// The figures of a store, as JSON and as text.
private struct InfoObject: Encodable {
    var medium: String
    var kind: String
    var writeMethod: String
    var isReadOnly: Bool
    var isPersistent: Bool
    var isPersistentMemory: Bool
    var reservesSpace: Bool
    var eraseUnitBytes: UInt64
    var uuid: String
    var features: [String]
    var generation: UInt64
    var checkpointCount: Int
    var sizeBytes: UInt64
    var segmentBytes: UInt64
    var segmentCount: UInt64
    var usedSegments: Int
    var reserveSegments: Int
    var logicalBytes: UInt64
    var nonZeroBytes: UInt64
    var liveBytes: UInt64
    var runBytes: UInt64
    var indexBytes: UInt64
    var catalogBytes: UInt64
    var sharedBytes: UInt64
    var deadBytes: UInt64
    var freeBytes: UInt64
    /// Of free segments, what still takes space of the medium; absent where it can't say.
    var freeAllocatedBytes: UInt64?
    var reserveBytes: UInt64
    var classes: [ClassObject]
    /// Those with the most dead space, the first of all.
    var deadestSegments: [SegmentObject]
    /// What compacting would give back.
    var compaction: CompactionObject
    /// All that are in use; absent unless asked for.
    var segments: [SegmentObject]?
    /// Absent for an empty store.
    var ratio: Double?

    init(_ info: StoreInfo, sizeBytes: UInt64, listsSegments: Bool) {
        medium = info.medium
        kind = info.traits.kind.rawValue
        writeMethod = info.traits.writeMethod
        isReadOnly = info.traits.isReadOnly
        isPersistent = info.traits.isPersistent
        isPersistentMemory = info.traits.isPersistentMemory
        reservesSpace = info.traits.reservesSpace
        eraseUnitBytes = info.traits.eraseUnit.rawValue
        uuid = info.uuid.description
        features = info.features
        generation = info.generation.rawValue
        checkpointCount = info.checkpointCount
        self.sizeBytes = sizeBytes
        segmentBytes = UInt64(info.geometry.segmentSize)
        segmentCount = UInt64(info.geometry.segmentCount)
        usedSegments = info.usedSegments
        reserveSegments = info.reserveSegments
        logicalBytes = info.logicalBytes.rawValue
        nonZeroBytes = info.nonZeroBytes.rawValue
        liveBytes = info.liveBytes.rawValue
        runBytes = info.runBytes.rawValue
        indexBytes = info.indexBytes.rawValue
        catalogBytes = info.catalogBytes.rawValue
        sharedBytes = info.sharedBytes.rawValue
        deadBytes = info.deadBytes.rawValue
        freeBytes = info.freeBytes.rawValue
        freeAllocatedBytes = info.freeAllocatedBytes?.rawValue
        reserveBytes = info.reserveBytes.rawValue
        classes = info.classes.map(ClassObject.init)
        deadestSegments = info.segments.filter { $0.deadBytes > .zero }.sorted { ($1.deadBytes, $0.segment) < ($0.deadBytes, $1.segment) }
            .prefix(Self.deadestCount).map(SegmentObject.init)
        compaction = CompactionObject(info.compaction)
        segments = listsSegments ? info.segments.map(SegmentObject.init) : nil
        ratio = info.ratio
    }

    private static let deadestCount = 5

    private var freeText: String {
        let sizes = "\(readable(ByteCount(freeBytes))), and \(readable(ByteCount(reserveBytes))) in reserve"
        guard let freeAllocatedBytes, freeAllocatedBytes > 0 else { return sizes }
        return sizes + "; \(readable(ByteCount(freeAllocatedBytes))) of it not given back yet"
    }

    var text: String {
        func size(_ bytes: UInt64) -> String { readable(ByteCount(bytes)) }
        func word(_ value: Bool) -> String { value ? "yes" : "no" }
        let medium = [
            ("store", self.medium), ("uuid", uuid), ("features", features.joined(separator: ", ")),
            ("generation", "\(generation)"), ("checkpoints", "\(checkpointCount)"),
        ]
        let space = [
            ("size", size(sizeBytes)),
            ("segments", "\(segmentCount) of \(size(segmentBytes)), \(usedSegments) in use, \(reserveSegments) in reserve"),
            ("logical", "\(size(logicalBytes)), \(size(nonZeroBytes)) of it not zero"),
            ("live", "\(size(liveBytes)): pages \(size(runBytes)), index \(size(indexBytes)), catalog \(size(catalogBytes))"),
            ("shared", size(sharedBytes)), ("dead", size(deadBytes)), ("free", freeText),
            ("compacting", compaction.text),
            ("ratio", ratio.map { "\(oneDecimal($0)) : 1" } ?? "-"),
        ]
        let traits = [
            ("medium", kind), ("written", writeMethod + (isReadOnly ? " (open for reading only)" : "")),
            ("persistent", word(isPersistent)),
            ("pmem", word(isPersistentMemory)), ("reserves space", word(reservesSpace)),
            ("erase unit", eraseUnitBytes == 0 ? "-" : size(eraseUnitBytes)),
        ]
        return listing((medium + space + traits).map { (name: $0.0, value: $0.1) }) + "\n" + ClassObject.table(classes)
            + (segments.map { SegmentObject.table($0) } ?? SegmentObject.table(deadestSegments, heading: "most dead space"))
    }
}
