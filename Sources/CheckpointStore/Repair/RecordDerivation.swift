// A checkpoint's record from a replica's of the same id, and from the roots and runs that this store has.
//
// Invariant: what a record says of the store that it is in, and not of the checkpoint, is found in this store.

import StoreFormat
import Units

/// What is known of a record that can't be read.
struct RecordWanted {
    var pointer: BlockPointer
    /// The generation in which it was committed.
    var generation: Generation
    /// What the replica has under this id.
    var model: CheckpointRecord
    /// The other records of this store: what it may have taken over, and who was committed with it.
    var others: [CheckpointRecord]
    /// Numbers that others who were committed together have.
    var groupIDs: Set<UInt64>
}

/// Guesses at one record. Confined to one thread.
final class RecordDerivation {
    private let wanted: RecordWanted
    private let relatives: Relatives
    private var judge: GuessJudge

    init(_ wanted: RecordWanted, _ relatives: Relatives, _ judge: GuessJudge) {
        self.wanted = wanted
        self.relatives = relatives
        self.judge = judge
    }

    /// The record's bytes; nil when no guess was right.
    func bytes() -> [UInt8]? {
        guard wanted.model.encodedLength == judge.length else { return nil }
        // Who wrote its blocks: the checkpoint itself, or one who received it, under a number of its own.
        let own = BlockBirth(wanted.model.id)
        let received = Set(wanted.model.regions.flatMap { region in roots(region).map(\.birth) }).subtracting([own])
        for writer in [own] + received.sorted() {
            var options: [[RegionRecord]] = []
            for region in wanted.model.regions { options.append(regions(region, writer)) }
            if let bytes = choose(options[...], [], writer) { return bytes }
        }
        return nil
    }

    /// Everything that can be the region's root, what was written last first.
    private func roots(_ region: RegionRecord) -> [BlockPointer] {
        (relatives.roots[region.key] ?? []).filter { $0.level == region.depth }.map(\.pointer).sorted { $1.placeNumber < $0.placeNumber }
    }

    /// The region as the record may have it: with a root of its writer's if there is one, else with that of another checkpoint.
    private func regions(_ region: RegionRecord, _ writer: BlockBirth) -> [RegionRecord] {
        var guess = region
        let stored = relatives.stored(by: writer, in: region.key)
        guess.newPages = stored.pages
        guard region.storedPages > .zero else {
            guess.root = nil
            return [guess]
        }
        let own = roots(region).filter { $0.birth == writer }
        var taken: [BlockPointer] = []
        for other in wanted.others.flatMap(\.regions) where other.key == region.key && other.depth == region.depth {
            if other.storedPages == region.storedPages, let root = other.root, !taken.contains(root), root.birth != writer { taken.append(root) }
        }
        let rest = roots(region).filter { $0.birth != writer && !taken.contains($0) }
        return (own + taken + (own.isEmpty ? rest : [])).map { root in
            guess.root = root
            return guess
        }
    }

    private func choose(_ options: ArraySlice<[RegionRecord]>, _ chosen: [RegionRecord], _ writer: BlockBirth) -> [UInt8]? {
        guard let first = options.first else { return attempt(chosen, writer) }
        for region in first where !judge.isExhausted {
            if let bytes = choose(options.dropFirst(), chosen + [region], writer) { return bytes }
        }
        return nil
    }

    private func attempt(_ regions: [RegionRecord], _ writer: BlockBirth) -> [UInt8]? {
        var guess = wanted.model
        guess.regions = regions
        guess.newPages = regions.reduce(.zero) { $0 + $1.newPages }
        guess.storedBytes = regions.reduce(.zero) { $0 + relatives.stored(by: writer, in: $1.key).bytes }
        guard (try? guess.check()) != nil else { return nil }
        for groupID in [0] + wanted.groupIDs.sorted() {
            guess.groupID = groupID
            // Most begin right before they are committed.
            for back in 1...Self.mostGenerations where back < wanted.generation.rawValue && !judge.isExhausted {
                guess.baseGeneration = Generation(wanted.generation.rawValue - back)
                if let bytes = judge.judge(length: guess.encodedLength, { guess.encoded() }) { return bytes }
            }
        }
        return nil
    }

    /// Generations between a checkpoint's beginning and its commit.
    private static let mostGenerations: UInt64 = 64
}
