// Bringing back what can be read of a store whose slots, catalog, segment table or index are gone: the way in.
//
// Invariants:
// - The damaged medium is only read. Without slots, or while others write to it, what is found is what its blocks say of themselves.
// - Nothing is brought back that no checksum covers; what is missing is named (see `SalvageReport`).

import Media
import StoreFormat
import Threading
import Units

/// A damaged store, looked through for what is left.
///
/// The methods are for one thread; they work on several. Memory: what `SalvageInventory` states, a record for each checkpoint, and a
/// few buffers of 2 MiB.
public final class Salvage {
    private let source: SalvageSource
    private let candidates: SalvageCandidates
    private let options: SalvageOptions

    /// Looks through the whole medium, which this then owns and closes when it goes. No more than reading access is needed.
    /// - Throws: `.notAStore` when there is neither a slot nor a segment header on it.
    public init(_ medium: any Medium, options: SalvageOptions = SalvageOptions()) throws(StoreError) {
        let layout = try SalvageLayout.find(on: medium)
        let total = medium.size
        let report = options.progress
        var scanner = SalvageScanner(medium: medium, layout: layout)
        scanner.progress = { report?(SalvageProgress(step: .scanning, done: $0, total: total)) }
        var inventory = scanner.survey()
        let store = Self.handle(medium, layout)
        let first = SalvageSource(store: store, layout: layout, inventory: inventory)
        candidates = SalvageCandidates(first)
        var births = Set(candidates.all.filter { $0.record == nil }.map { [inventory] in inventory.birth(of: $0.id) })
        if options.includesUnproven { births.formUnion(candidates.unproven) }
        if !births.isEmpty { scanner.addLooseBlocks(of: births, to: &inventory) }
        self.options = options
        source = SalvageSource(store: store, layout: layout, inventory: inventory)
    }

    /// The identity of the damaged store.
    public var uuid: StoreUUID { source.layout.uuid }
    /// Bytes of its segments.
    public var segmentSize: ByteCount { ByteCount(UInt64(source.layout.geometry.segmentSize)) }

    /// A store's handle for reading blocks, by layout alone.
    private static func handle(_ medium: any Medium, _ layout: SalvageLayout) -> CheckpointStore {
        let first = Generation(UInt64(1))
        let slot =
            layout.slot
            ?? Slot(
                kind: .commit, twin: 0, uuid: layout.uuid, generation: first, incompat: 0, readOnlyCompat: 0, compat: 0,
                geometry: layout.geometry, pageHashSeed: 0, commitTimeNanoseconds: 0, catalogByID: nil, catalogByName: nil,
                segmentTable: nil, checkpointCount: 0, usedSegments: 0, catalogSegment: nil, allocationHint: SegmentIndex(UInt64(0)),
                reserveSegments: 0, eraseUnit: .zero, baseGeneration: first, featureNames: [])
        return CheckpointStore(
            medium: medium, slot: slot, isReadOnly: true, pinnedGeneration: slot.generation, environment: StoreEnvironment())
    }

    /// Brings everything back into `target`, one commit for each checkpoint; nil: only reads all of it, to say what would come back.
    ///
    /// A checkpoint that was committed stays when a later one fails. Nothing is thrown: damage of the source is reported, and so is what
    /// writing to `target` throws (`.noSpace` above all): it ends the work, and is the report's `obstacle`.
    public func run(into target: CheckpointStore?) -> SalvageReport {
        let layout = source.layout
        var report = SalvageReport(
            uuid: layout.uuid, segmentSize: segmentSize, segmentCount: layout.geometry.segmentCount, slotGeneration: layout.slot?.generation,
            isCatalogWhole: candidates.isCatalogWhole, scannedSegments: source.inventory.scannedSegments,
            foreignSegments: source.inventory.foreignSegments, unreadableBytes: source.inventory.unreadableBytes,
            checksPageHashes: source.hasPageHashes, unprovenCheckpoints: 0, partialCheckpoints: candidates.partCount, checkpoints: [])
        var copier = CheckpointSalvage(source: source, target: target, candidates: candidates.all, options: options)
        do throws(StoreError) {
            for candidate in candidates.all { report.checkpoints.append(try copier.copy(candidate)) }
            // Only now is it known which runs are of checkpoints: what was received has other births than ids.
            let named = source.namedBirths
            let unproven = candidates.unproven.filter { !named.contains($0) }
            report.unprovenCheckpoints = unproven.count
            for birth in options.includesUnproven ? unproven : [] {
                report.checkpoints.append(try copier.copy(SalvageCandidate(id: CheckpointID(birth.rawValue))))
            }
        } catch { report.obstacle = error }
        return report
    }
}
