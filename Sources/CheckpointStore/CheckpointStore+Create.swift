// Making a store on a medium.
//
// Invariant: a medium that holds a store is not touched unless force is given and nobody has it open.

import Glibc
import Media
import StoreFormat
import Units

/// How a new store is laid out.
public struct CreateOptions: Sendable {
    /// The size of a segment: a multiple of the commit unit, 128 KiB to 1 GiB; best a multiple of 2 MiB.
    public var segmentSize: ByteCount
    /// Replace a store that is there.
    public var force: Bool

    public init(segmentSize: ByteCount = .mebibytes(2), force: Bool = false) {
        self.segmentSize = segmentSize
        self.force = force
    }
}

extension CheckpointStore {
    /// Fewest segments that a store can work with: the reserve, and one of each class twice.
    static let minimumSegments: UInt64 = 10

    /// Makes an empty store over the whole of `medium`, which the handle then owns. Durable on return.
    ///
    /// - Throws: `.exists` when the medium holds a store and force is not given; `.busy` when somebody has that open;
    ///   `.invalidInput` when the medium is too small or the geometry is not possible.
    public static func create(
        on medium: any Medium, options: CreateOptions = CreateOptions(), environment: StoreEnvironment = StoreEnvironment()
    ) throws(StoreError) -> CheckpointStore {
        let taken = try onMedium { () throws(MediumError) in try medium.locks.tryLock(LockLayout.presence, .exclusive) }
        guard taken else {
            let holders = medium.locks.holders(of: LockLayout.presence)
            throw StoreError(
                .busy, "the store is open in \(LockHolder.list(holders))", remedy: "End that first.", medium: medium.name)
        }
        let geometry = try layout(medium, size: medium.size, options)
        try wipe(medium, geometry, force: options.force)
        let slot = firstSlot(geometry, medium, environment)
        for twin in [UInt8(0), 1] { try SlotRing.write(slot, twin: twin, to: medium) }
        try onMedium { () throws(MediumError) in try medium.flush() }
        try takePresence(medium)
        return CheckpointStore(
            medium: medium, slot: slot, isReadOnly: false, pinnedGeneration: nil, environment: environment)
    }

    /// Throws the `.invalidInput` that `create` would if `medium` had `size` bytes: to find out before its content is lost.
    public static func checkCreate(
        on medium: any Medium, size: ByteCount, options: CreateOptions
    ) throws(StoreError) { _ = try layout(medium, size: size, options) }

    private static func layout(
        _ medium: any Medium, size mediumSize: ByteCount, _ options: CreateOptions
    ) throws(StoreError) -> Geometry {
        let unit = max(UInt64(pageSize), min(UInt64(medium.traits.directAlignment), 65536))
        let size = options.segmentSize.rawValue
        // Between the header and the unit that is kept for a commit record the largest block must fit.
        let largest = UInt64(SegmentHeader.encodedLength + max(PageRunHeader.maximumLength, CheckpointRecord.maximumLength))
        let least = max(128 << 10, 3 * unit, ByteCount(unit + largest).roundedUp(to: unit).rawValue)
        guard size >= least, size <= 1 << 30, size % unit == 0 else {
            throw StoreError(
                .invalidInput, "segments of \(size) bytes are not possible",
                remedy: "Choose a multiple of \(unit) from \(least) to 1 GiB; 2 MiB is a good size.", medium: medium.name)
        }
        let apart = max(size, medium.traits.eraseUnit.rawValue, 64 << 10)
        let twinOffset = Geometry.twinOffsets.first { $0.rawValue >= apart } ?? Geometry.twinOffsets[Geometry.twinOffsets.count - 1]
        let dataOffset = twinOffset.rawValue * 2
        let room = mediumSize.rawValue > dataOffset ? mediumSize.rawValue - dataOffset : 0
        let count = min(room / size, UInt64(UInt32.max - 1))
        guard count >= minimumSegments else {
            throw StoreError(
                .invalidInput, "\(mediumSize) bytes are too small for a store with segments of \(size) bytes",
                remedy: "Give it at least \(dataOffset + minimumSegments * size) bytes, or smaller segments.", medium: medium.name)
        }
        return Geometry(
            segmentSize: UInt32(size), commitUnit: UInt32(unit), segmentCount: UInt32(count), twinOffset: twinOffset)
    }

    /// Clears the rings, and whatever ring B an earlier store of another geometry has left.
    private static func wipe(_ medium: any Medium, _ geometry: Geometry, force: Bool) throws(StoreError) {
        let ringBytes = Slot.ringLength * Slot.encodedLength
        let zeros = AlignedBuffer(count: ringBytes)
        zeros.clear(0..<ringBytes)
        var wrote = false
        for place in [MediumOffset.zero] + Geometry.twinOffsets {
            guard place.rawValue + UInt64(ringBytes) <= medium.size.rawValue else { break }
            let bytes = try medium.bytes(at: place, count: ringBytes)
            let isOurs = stride(from: 0, to: ringBytes, by: Slot.encodedLength).contains { start in
                (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[start + $1]) << UInt64(8 * $1) } == Slot.magic
            }
            if isOurs, !force {
                throw StoreError(
                    .exists, "there is a checkpoint store on it already", remedy: "Use --force to replace it and all its checkpoints.",
                    medium: medium.name)
            }
            let isRing = place == .zero || place == geometry.twinOffset
            guard isOurs || (isRing && bytes.contains { $0 != 0 }) else { continue }
            try onMedium { () throws(MediumError) in unsafe try medium.write(at: place, UnsafeRawBufferPointer(zeros.bytes)) }
            wrote = true
        }
        // The old slots must be gone before a new one can be found.
        if wrote { try onMedium { () throws(MediumError) in try medium.flush() } }
    }

    private static func firstSlot(
        _ geometry: Geometry, _ medium: any Medium, _ environment: StoreEnvironment
    ) -> Slot {
        let (a, b) = (environment.random(), environment.random())
        return Slot(
            kind: .commit, twin: 0, uuid: StoreUUID(bytes: [a, b].flatMap { half in (0..<8).map { UInt8(truncatingIfNeeded: half >> (8 * $0)) } }), generation: Generation(UInt64(1)),
            incompat: 0, readOnlyCompat: Feature.lineage, compat: 0, geometry: geometry,
            pageHashSeed: environment.random(), commitTimeNanoseconds: environment.nowNanoseconds(), catalogByID: nil,
            catalogByName: nil, segmentTable: nil, checkpointCount: 0, usedSegments: 0, catalogSegment: nil, allocationHint: SegmentIndex(UInt64(0)),
            reserveSegments: reserve(of: geometry.segmentCount), eraseUnit: medium.traits.eraseUnit,
            baseGeneration: Generation(UInt64(1)), featureNames: Feature.names(incompat: 0, readOnlyCompat: Feature.lineage, compat: 0))
    }
}
