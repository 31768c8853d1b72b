// Bringing one checkpoint back after the other, each as the difference from its parent where that is back already.
//
// Invariants:
// - A checkpoint is committed with all that could be read of it, or not at all.
// - Names stay what they were; where two checkpoints had one name, or it is taken, the id is put behind it.

import StoreFormat
import Threading
import Units

/// For one thread.
struct CheckpointSalvage {
    private let source: SalvageSource
    private let target: CheckpointStore?
    private let options: SalvageOptions
    /// What some checkpoint says of a region, by its key: for those whose own record is gone.
    private let known: [RegionKey: RegionRecord]
    private let totalBytes: ByteCount
    private let copiedBytes = Lock(ByteCount.zero)
    private var usedNames = Set<[UInt8]>()
    /// What became of the checkpoints so far.
    private var done: [CheckpointID: Done] = [:]

    private struct Done {
        var name: String
        var record: CheckpointRecord
        var lost: [RegionKey: PageRanges]
    }

    init(source: SalvageSource, target: CheckpointStore?, candidates: [SalvageCandidate], options: SalvageOptions) {
        self.source = source
        self.target = target
        self.options = options
        var known: [RegionKey: RegionRecord] = [:]
        for region in candidates.flatMap({ $0.record?.regions ?? [] }) { known[region.key] = region }
        self.known = known
        totalBytes = candidates.map { $0.record?.newPages.saturatingBytes ?? .zero }.saturatingSum
    }

    /// Copies one checkpoint; its parent has been before.
    mutating func copy(_ candidate: SalvageCandidate) throws(StoreError) -> SalvagedCheckpoint {
        let parent = candidate.record?.parent.flatMap { done[$0] }
        let regions = candidate.record.map { $0.regions.map(Self.remains) } ?? source.looseRegions(source.inventory.birth(of: candidate.id), known: known)
        var result = SalvagedCheckpoint(id: candidate.id, oldName: candidate.name, name: nil, parent: parent?.name, state: .lost, regions: [])
        guard candidate.record != nil || !regions.isEmpty else { return result }
        let name = try freeName(candidate)
        let writer = try begin(candidate, name, parent)
        defer { writer?.abort() }
        for region in regions { result.regions.append(try copy(region, candidate, parent, writer)) }
        result.state = Self.state(candidate, result, hasIndex: regions.contains { !$0.tops.isEmpty })
        guard result.state != .lost else { return result }
        if let writer {
            if result.state != .whole {
                try writer.setLabel("ckstore.salvaged", result.state.rawValue)
                try writer.setLabel("ckstore.salvaged.id", candidate.id.description)
            }
            let info = try writer.commit()
            for region in info.regions {
                if let at = result.regions.firstIndex(where: { Names.equal($0.name, region.name) }) { result.regions[at].readPages = region.storedPages }
            }
        }
        usedNames.insert(Array(name.utf8))
        result.name = name
        if let record = candidate.record {
            let lost = Dictionary(zip(regions, result.regions).map { ($0.key, $1.lost) }) { first, _ in first }
            done[candidate.id] = Done(name: name, record: record, lost: lost)
        }
        return result
    }

    private static func remains(_ region: RegionRecord) -> RegionRemains {
        RegionRemains(
            name: region.name, kind: region.kind, byteLength: region.byteLength, key: region.key,
            tops: region.root.map { [RegionRemains.Top(pointer: $0, level: region.depth, first: SpanIndex(UInt64(0)))] } ?? [])
    }

    private func begin(_ candidate: SalvageCandidate, _ name: String, _ parent: Done?) throws(StoreError) -> CheckpointWriter? {
        guard let target else { return nil }
        let labels = Dictionary(candidate.record?.labels.map { ($0.key, $0.value) } ?? []) { first, _ in first }
        return try target.begin(name, parent: parent?.name, options: WriterOptions(parallelism: options.parallelism, labels: labels))
    }

    private func copy(
        _ region: RegionRemains, _ candidate: SalvageCandidate, _ parent: Done?, _ writer: CheckpointWriter?
    ) throws(StoreError) -> SalvagedRegion {
        let before = parent.flatMap { parent in
            parent.record.regions.first { $0.key == region.key }.map { ParentRemains(record: $0, lost: parent.lost[region.key] ?? PageRanges()) }
        }
        let target = try writer?.addRegion(region.name, kind: region.kind, byteLength: region.byteLength)
        let (report, total, copied) = (options.progress, totalBytes, copiedBytes)
        let outcome = try RegionSalvage(
            source: source, region: region, parent: before, target: target, parallelism: options.parallelism
        ) { pages in
            let done = copied.withLock { bytes in
                bytes += pages.bytes
                return bytes
            }
            report?(SalvageProgress(step: .copying, done: done, total: total))
        }.run()
        let lost = PageRanges(outcome.lost)
        let record = candidate.record?.regions.first { $0.key == region.key }
        let readPages = record.map { min($0.storedPages, region.pageCount - lost.count) } ?? outcome.readPages
        return SalvagedRegion(
            name: region.name, isNameKnown: region.isNameKnown, kind: region.kind, byteLength: region.byteLength, readPages: readPages,
            lost: lost, hasUnknownPages: region.hasUnknownPages)
    }

    private static func state(_ candidate: SalvageCandidate, _ result: SalvagedCheckpoint, hasIndex: Bool) -> SalvageState {
        let hasLost = result.regions.contains { !$0.lost.isEmpty }
        let hasRead = result.regions.contains { $0.readPages > .zero }
        if candidate.record != nil {
            if !hasLost { return .whole }
            return hasRead || result.regions.contains(where: \.lost.isEmpty) ? .partial : .lost
        }
        guard hasRead else { return .lost }
        return hasIndex ? .index : .runs
    }

    /// The name to use: the old one where it is free.
    private func freeName(_ candidate: SalvageCandidate) throws(StoreError) -> String {
        var name = candidate.name ?? "salvaged-\(candidate.id)"
        guard try isTaken(name) else { return name }
        let suffix = "~\(candidate.id)"
        while name.utf8.count + suffix.utf8.count > Names.maximumLength { name.removeLast() }
        return name + suffix
    }

    private func isTaken(_ name: String) throws(StoreError) -> Bool {
        if usedNames.contains(Array(name.utf8)) { return true }
        guard let target else { return false }
        // A name that moves is taken too, and `latest` always is.
        if Names.equal(name, Reference.latest) { return true }
        return try target.checkpointID(of: name, in: try target.newestSlot()) != nil
    }
}
