// What a verification counts: blocks, bytes, damages, and what is live in each segment.
//
// Invariant: each reachable block is counted once.

import Media
import StoreFormat
import Threading
import Units

extension TreeVerifier {
    /// Notes damage and returns its number; throws what is no damage but an end to verifying.
    func note(_ error: StoreError, block: BlockPointer?, isOfBlock: Bool = false) throws(StoreError) -> Int {
        guard error.isDamage else { throw error }
        return state.withLock { $0.log.note(error, block: block, isOfBlock: isOfBlock) }
    }

    /// Notes that a block can't be found since the forwarding can't be read; throws what is no damage.
    func noteUnresolved(_ error: StoreError) throws(StoreError) -> Int {
        guard error.isDamage else { throw error }
        return state.withLock { $0.log.noteUnresolved(error) }
    }

    /// A checkpoint is lost whole.
    func addLoss(_ damage: Int, _ checkpoint: AffectedCheckpoint) {
        state.withLock { $0.log.addLoss(damage, checkpoint, region: nil) }
    }

    /// What is to be compared with the table, and what there is to read by it.
    func setSegments(_ entries: [SegmentIndex: SegmentEntry]) {
        let expected = entries.values.reduce(UInt64(0)) { sum, entry in
            let live = entry.segmentClass == .runs ? UInt64.max : UInt64(entry.live) * UInt64(blockAlignment)
            return sum + min(UInt64(entry.committedLength), live)
        }
        state.withLock { state in
            state.entries = entries
            state.expectedBytes = ByteCount(expected)
        }
    }

    /// The table's entries, what was reached in each segment, and a block in each that the table does not count as written.
    var segmentCounts: ([SegmentIndex: SegmentEntry], [SegmentIndex: UInt64], [SegmentIndex: BlockPointer]) {
        state.withLock { ($0.entries, $0.live, $0.uncounted) }
    }

    /// Notes what the table counts beyond what is reachable.
    func setLost(pages: PageCount, bytes: ByteCount) { state.withLock { $0.lost = (pages, bytes) } }

    /// Counts a block of the index, the catalog or the table, by the pointer to where it is.
    func countSound(_ pointer: BlockPointer) {
        let progress = state.withLock { state in
            state.count(pointer)
            state.live[pointer.segment, default: 0] += UInt64(CommitTransaction.liveUnits(Int(pointer.storedLength)))
            return VerifyProgress(bytes: state.bytes, expectedBytes: state.expectedBytes)
        }
        options.progress?(progress)
    }

    /// Counts runs, by the pointers to where they are, that were not known to be sound, and the places in them that were not known to be listed.
    func countSound(runs: [(BlockPointer, SoundRun)]) {
        let progress = state.withLock { state in
            for (pointer, run) in runs {
                let before = state.runs[pointer.placeNumber]
                if before == nil { state.count(pointer) }
                var claims = before?.claims ?? PageClaims()
                claims.formUnion(run.claims)
                state.runs[pointer.placeNumber] = SoundRun(fingerprint: run.fingerprint, claims: claims)
                state.live[pointer.segment, default: 0] += UInt64(claims.places.nonzeroBitCount - (before?.claims.places.nonzeroBitCount ?? 0))
            }
            return VerifyProgress(bytes: state.bytes, expectedBytes: state.expectedBytes)
        }
        options.progress?(progress)
    }
}

extension TreeVerifier.State {
    /// Every reachable block lies in a used segment of its class, below its committed length.
    fileprivate mutating func count(_ pointer: BlockPointer) {
        blocks += 1
        bytes += ByteCount(UInt64(pointer.storedLength))
        guard !entries.isEmpty else { return }
        let end = UInt64(pointer.offset.rawValue) + UInt64(pointer.storedLength)
        if let entry = entries[pointer.segment], entry.segmentClass == SegmentClass(holding: pointer.kind),
            end <= UInt64(entry.committedLength)
        {
            return
        }
        if uncounted[pointer.segment] == nil { uncounted[pointer.segment] = pointer }
    }
}
