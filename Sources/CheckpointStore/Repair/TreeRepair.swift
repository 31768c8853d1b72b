// Rebuilding a store's own trees in place: the catalogs, the lineage, the segment table, forwarding. They say nothing that can't be had
// from what else there is, or hardly anything, and their nodes are written anew by every commit anyway.
//
// Invariants:
// - It is one ordinary commit: the trees that have damaged nodes, and the segment table, are written anew, and count when the slots do.
//   Until then the store is as it was, damage and all.
// - Only what was read counts: every pointer that is put in a tree leads to a block that was found whole.
// - What could not be had again is named.

import Media
import StoreFormat
import Units

/// What a repair did to the trees that the store keeps of itself; of a dry run, what it would do.
public struct TreeRepairReport: Sendable {
    /// A tree that was written anew.
    public struct Tree: Sendable {
        /// "catalog by id", "segment table".
        public var name: String
        /// Its nodes, and forwarding tables, that could not be read.
        public var damagedNodes: Int
        /// What stood in them was had from there: a phrase.
        public var source: String
    }
    /// Those that had damaged nodes. In the order in which they depend on each other.
    public var trees: [Tree] = []
    /// What could not be had again, or not for certain: sentences without their full stops.
    public var losses: [String] = []

    init() {}

    mutating func add(_ other: TreeRepairReport) {
        trees += other.trees
        losses += other.losses
    }
}

extension CheckpointStore {
    /// Writes the trees anew of which nodes can't be read. Durable on return. Under the reclaim lock; others can't commit meanwhile.
    ///
    /// Reads the trees' nodes, and nothing else when all are sound; otherwise the whole medium once, and the whole index.
    /// - Parameter replica: where names that move are had from.
    /// - Returns: what was done, and how many segments became free.
    func rebuildTrees(from replica: CheckpointStore?) throws(StoreError) -> (report: TreeRepairReport, freed: Int) {
        // A look without the lock: mostly there is nothing to do.
        if try areTreesWhole() { return (TreeRepairReport(), 0) }
        var report = TreeRepairReport()
        var freed: [SegmentIndex] = []
        defer { unclaim(freed) }
        let generation = try underCommitLock { (base) throws(StoreError) -> Generation? in
            var repair = try TreeRepair(self, base, replica)
            guard !repair.survey.isWhole else { return nil }
            report = repair.report
            let slot = try repair.commit(&freed)
            adopt(slot)
            return slot.generation
        }
        if let generation { try giveBack(freed, generation) }
        return (report, freed.count)
    }

    private func areTreesWhole() throws(StoreError) -> Bool {
        let slot = try register()
        defer { unregister(slot.generation) }
        return try TreeSurvey(self, slot).isWhole
    }

    /// What `rebuildTrees` would do.
    func treesToRebuild(from replica: CheckpointStore?) throws(StoreError) -> TreeRepairReport {
        let slot = try register()
        defer { unregister(slot.generation) }
        guard slot.incompat & Feature.draft == 0 else { return TreeRepairReport() }
        return try TreeRepair(self, slot, replica).report
    }
}

/// The trees of one generation, as they are and as they are to be. Confined to one thread.
private struct TreeRepair {
    let survey: TreeSurvey
    private(set) var report = TreeRepairReport()
    private let store: CheckpointStore
    private var scan: TreeScan?
    private var walk: TreeRepairWalk?
    private var moves: [ForwardingKey: ForwardingEntry] = [:]
    private var catalog: CatalogRecovery?
    private var lineage: LineageRecovery?

    init(_ store: CheckpointStore, _ slot: Slot, _ replica: CheckpointStore?) throws(StoreError) {
        self.store = store
        survey = try TreeSurvey(store, slot)
        guard !survey.isWhole else { return }
        let scan = TreeScan(store, slot)
        let recovered = RecoveredMoves(store, survey, scan)
        var blocks = store.blocks(in: slot)
        blocks.recovered = recovered
        let catalog = try CatalogRecovery(store, survey, scan, blocks)
        let walk = try TreeRepairWalk(catalog.values, blocks, recovered, pageHashSeed: slot.pageHashSeed)
        let members = Set(survey.members.filter { $0.value.state == .living }.keys)
        let isLineageWhole = survey.damaged[.lineage] == nil && members == Set(catalog.values.keys)
        if !isLineageWhole { lineage = try LineageRecovery(store, survey, scan, blocks, catalog, replica: replica) }
        moves = Self.moves(survey, recovered, walk)
        (self.scan, self.walk, self.catalog) = (scan, walk, catalog)
        describe(catalog, walk)
    }

    /// Every moved block that is needed, each once.
    private static func moves(
        _ survey: TreeSurvey, _ recovered: RecoveredMoves, _ walk: TreeRepairWalk
    ) -> [ForwardingKey: ForwardingEntry] {
        guard survey.damaged[.forwarding] != nil else { return survey.moves }
        var all = survey.moves.merging(recovered.entries) { first, _ in first }
        if !walk.isWhole { all.merge(recovered.unmet) { first, _ in first } }
        for (key, entry) in all {
            guard let places = walk.reached[key] else {
                if walk.isWhole { all[key] = nil }
                continue
            }
            let live = places & entry.kept
            if entry.kind == .run, walk.isWhole, live != 0 { all[key]?.live = live }
        }
        return all
    }

    private mutating func describe(_ catalog: CatalogRecovery, _ walk: TreeRepairWalk) {
        func add(_ tree: CatalogTree?, _ name: String, _ source: String, isChanged: Bool = false) {
            guard isChanged || survey.damaged[tree] != nil else { return }
            report.trees.append(TreeRepairReport.Tree(name: name, damagedNodes: survey.damaged[tree] ?? 0, source: source))
        }
        add(.forwarding, "forwarding", "older tables and the blocks that were moved")
        add(.byID, "catalog by id", "the catalog by name, the lineage and the records", isChanged: catalog.changesIDs)
        add(.byName, "catalog by name", "the catalog by id and the records", isChanged: catalog.changesNames)
        add(.lineage, "lineage", "the other entries of the lineage, the records and older copies")
        add(nil, "segment table", "the segments and what checkpoints reach in them")
        report.losses = catalog.losses + (lineage?.losses ?? [])
        report.losses += Set(walk.unfound).sorted { ($0.segment, $0.offset) < ($1.segment, $1.offset) }.map {
            "the \($0.kind) that was moved from segment \($0.segment) + \($0.offset) was not found again"
        }
    }

    // MARK: committing

    /// Commits what was rebuilt. The commit lock is held, and the base is that of this repair.
    ///
    /// - Parameter freed: segments that became free; this handle holds their claims, also when this throws.
    mutating func commit(_ freed: inout [SegmentIndex]) throws(StoreError) -> Slot {
        guard let scan, let walk, let catalog else { preconditionFailure("there is something to rebuild") }
        let transaction = try CommitTransaction(store: store, base: survey.slot)
        let rebuilt = rebuiltTrees(catalog)
        let kept = CatalogTree.allCases.filter { !rebuilt.contains($0) }.flatMap { survey.sound[$0] ?? [] }
        let ends = CatalogTree.allCases.flatMap { survey.sound[$0] ?? [] } + survey.roots
        let knownEnd = ends.filter { $0.segment == survey.slot.catalogSegment }.map { $0.offset.int + Int($0.storedLength) }.max() ?? 0
        let writer = TreeWriter(store, survey, transaction, knownEnd: knownEnd)
        defer { store.unclaim(writer.claims) }
        try writeCatalogs(rebuilt, catalog, writer, transaction)
        let table = try TableRecovery(store, survey, scan, walk, kept: kept, generation: transaction.generation)
        freed = table.freed
        (transaction.slot.segmentTable, transaction.slot.usedSegments) = try table.write(writer, depth: survey.slot.geometry.tableDepth)
        transaction.slot.catalogSegment = writer.usedParts.last?.segment
        transaction.slot.checkpointCount = UInt64(catalog.values.count)
        transaction.settleFeatures()
        try writer.write()
        do { try onMedium { () throws(MediumError) in try store.medium.flush() } } catch { throw store.fail(error) }
        return try transaction.finishUnchanged()
    }

    private func rebuiltTrees(_ catalog: CatalogRecovery) -> Set<CatalogTree> {
        var rebuilt = Set(survey.damaged.keys.compactMap(\.self))
        if catalog.changesIDs { rebuilt.insert(.byID) }
        if catalog.changesNames { rebuilt.insert(.byName) }
        if lineage != nil { rebuilt.insert(.lineage) }
        return rebuilt
    }

    private func writeCatalogs(
        _ rebuilt: Set<CatalogTree>, _ catalog: CatalogRecovery, _ writer: TreeWriter, _ transaction: CommitTransaction
    ) throws(StoreError) {
        if rebuilt.contains(.forwarding) { transaction.slot.forwarding = try writer.tree(.forwarding, try tables(writer, transaction)) }
        if rebuilt.contains(.byID) {
            let entries = catalog.values.sorted { $0.key < $1.key }.map { (key: CatalogTree.key($0.key), value: $0.value.encoded()) }
            transaction.slot.catalogByID = try writer.tree(.byID, entries)
        }
        if rebuilt.contains(.byName) {
            let entries = catalog.names.map { (key: $0.key, value: CatalogTree.value($0.value)) }
            transaction.slot.catalogByName = try writer.tree(.byName, entries.sorted { $0.key.lexicographicallyPrecedes($1.key) })
        }
        if rebuilt.contains(.lineage), let lineage { transaction.slot.lineage = try writer.tree(.lineage, lineage.entries) }
    }

    /// Writes the forwarding tables. Returns the entries of their tree.
    private func tables(_ writer: TreeWriter, _ transaction: CommitTransaction) throws(StoreError) -> [(key: [UInt8], value: [UInt8])] {
        var entries: [(key: [UInt8], value: [UInt8])] = []
        let bySegment = Dictionary(grouping: moves) { $0.key.segment }
        for (segment, ofSegment) in bySegment.sorted(by: { $0.key < $1.key }) {
            var rest = ofSegment.map(\.value).sorted { ($0.offset, $0.birth.rawValue) < ($1.offset, $1.birth.rawValue) }[...]
            while !rest.isEmpty {
                let table = ForwardingTable(segment: segment, entries: Array(rest.prefix(ForwardingTable.maximumEntries)))
                rest = rest.dropFirst(ForwardingTable.maximumEntries)
                let place = try writer.reserve(table.encodedLength)
                entries.append((table.key.bytes, writer.fill(place, table.encoded(birth: BlockBirth(transaction.generation))).encoded()))
            }
        }
        return entries
    }
}

extension TreeSurvey {
    /// The roots, readable or not.
    fileprivate var roots: [BlockPointer] {
        [slot.catalogByID, slot.catalogByName, slot.lineage, slot.forwarding, slot.segmentTable].compactMap(\.self)
    }
}
