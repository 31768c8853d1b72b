// Slots: the roots of a generation. FORMAT.md 3.1.
//
// Invariant: a decoded slot is of this version and of known incompatible features, stands where it
// belongs, and its geometry and roots fit one another.

public import Units

/// What a slot says about its generation.
public enum SlotKind: UInt8, Hashable, Sendable, CaseIterable {
    /// A commit.
    case commit = 1
    /// A commit whose flush failed: repeats the state of `baseGeneration`.
    case poisoned
}

/// The roots of one generation.
public struct Slot: Hashable, Sendable {
    public var kind: SlotKind
    /// 0 in ring A, 1 in ring B.
    public var twin: UInt8
    public var uuid: StoreUUID
    /// At least 1.
    public var generation: Generation
    /// Bits of features; see `Feature`.
    public var incompat: UInt64
    public var readOnlyCompat: UInt64
    public var compat: UInt64
    public var geometry: Geometry
    /// Seed of page hashes; secret.
    public var pageHashSeed: UInt64
    /// Since 1970-01-01 UTC.
    public var commitTimeNanoseconds: UInt64
    /// A catalog node; nil when there are no checkpoints.
    public var catalogByID: BlockPointer?
    /// A catalog node; nil when there are no checkpoints.
    public var catalogByName: BlockPointer?
    /// A segment-table node; nil when no segment was ever used.
    public var segmentTable: BlockPointer?
    /// A node of the forwarding tree; nil when no block has been moved. The feature bit `forwarding` says the same.
    public var forwarding: BlockPointer?
    /// A node of the lineage tree; nil when there are no checkpoints, and in draft stores.
    public var lineage: BlockPointer?
    /// Entries of the catalog.
    public var checkpointCount: UInt64
    /// Segments that are not free.
    public var usedSegments: UInt32
    /// Where the next commit appends catalog and table nodes; nil: nowhere yet.
    public var catalogSegment: SegmentIndex?
    /// Where a search for free segments should start.
    public var allocationHint: SegmentIndex
    /// Segments kept for delete, compaction and abort.
    public var reserveSegments: UInt32
    /// Of the medium when the store was created; 0: unknown.
    public var eraseUnit: ByteCount
    /// Poisoned: the generation whose state this slot repeats; else `generation`.
    public var baseGeneration: Generation
    /// At most 111.
    public var featureNames: [FeatureName]

    public init(
        kind: SlotKind, twin: UInt8, uuid: StoreUUID, generation: Generation, incompat: UInt64, readOnlyCompat: UInt64,
        compat: UInt64, geometry: Geometry, pageHashSeed: UInt64, commitTimeNanoseconds: UInt64,
        catalogByID: BlockPointer?, catalogByName: BlockPointer?, segmentTable: BlockPointer?, forwarding: BlockPointer? = nil, lineage: BlockPointer? = nil,
        checkpointCount: UInt64,
        usedSegments: UInt32, catalogSegment: SegmentIndex?, allocationHint: SegmentIndex, reserveSegments: UInt32,
        eraseUnit: ByteCount, baseGeneration: Generation, featureNames: [FeatureName]
    ) {
        self.kind = kind
        self.twin = twin
        self.uuid = uuid
        self.generation = generation
        self.incompat = incompat
        self.readOnlyCompat = readOnlyCompat
        self.compat = compat
        self.geometry = geometry
        self.pageHashSeed = pageHashSeed
        self.commitTimeNanoseconds = commitTimeNanoseconds
        self.catalogByID = catalogByID
        self.catalogByName = catalogByName
        self.segmentTable = segmentTable
        self.forwarding = forwarding
        self.lineage = lineage
        self.checkpointCount = checkpointCount
        self.usedSegments = usedSegments
        self.catalogSegment = catalogSegment
        self.allocationHint = allocationHint
        self.reserveSegments = reserveSegments
        self.eraseUnit = eraseUnit
        self.baseGeneration = baseGeneration
        self.featureNames = featureNames
    }

    /// Bytes of a slot.
    public static let encodedLength = 4096
    /// Slots of a ring.
    public static let ringLength = 16
    /// The version of the format.
    public static let formatVersion: UInt32 = 1
    /// Generations are below this: the locks of section 9 have no room for more.
    public static let generationLimit: UInt64 = 1 << 40
    /// The most feature names of a slot.
    public static let maximumFeatureNames = 111
    /// `CKSTORE1`: the first 8 bytes of a slot, as a little-endian integer.
    public static let magic: UInt64 = 0x3145_524F_5453_4B43

    static let noSegment = UInt32.max
    static let featureNamesStart = 516
    static let subject = "slot"

    /// The position of the slot of `generation` in each ring.
    public static func position(of generation: Generation) -> Int { Int(generation.rawValue % UInt64(ringLength)) }
}
