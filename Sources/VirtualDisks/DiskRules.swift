// The rules that keep a checkpoint's disk and memory apart from the machine's [system A, steps 812 to 818].
//
// They stand here, apart from the machinery that follows them, so that tests can put others in their place and see what breaks.

import MachineMemory
import Units

/// When it is considered whether a pending read is to be issued again.
package enum ReissueMoment: Sendable {
    /// The machine goes on.
    case machineResumes
    /// The read itself has completed.
    case originalCompleted
}

/// Where a read that is issued again gets its bytes from.
package enum ReissueSource: Sendable {
    /// The disk below the checkpoint's overlay.
    case parent
    /// What the machine sees now.
    case ongoing
}

/// A request, as rules see it.
package struct RuledRequest: Sendable {
    package var operation: DiskOperation
    package var range: Range<DiskOffset>
    /// The block groups that it touches.
    package var groups: Range<Int>
}

/// Decides what the machinery does at the edges. Pure functions.
package protocol DiskRules: Sendable {
    /// 815: whether a pending read is issued again at this moment; `anyPageCopied`: the checkpoint has copies of pages that it targets.
    func reissues(at moment: ReissueMoment, anyPageCopied: Bool) -> Bool
    /// 815: where its bytes come from then.
    var reissueSource: ReissueSource { get }
    /// 812: whether the machine has to wait for all pending requests, which are given in issue order.
    func mustWaitBeforeResuming(_ pending: [RuledRequest]) -> Bool
    /// 816: which pages the checkpoint has to have copied before a new read is issued.
    func pagesToPreserve(before read: GuestBuffer) -> Range<PageIndex>
    /// 818: whether a new write waits for a pending one that it does not overlap.
    func holds(_ new: RuledRequest, forPending pending: RuledRequest) -> Bool
}

/// The rules as they are right.
package struct StandardDiskRules: DiskRules {
    package init() {}

    /// Not before the original has completed: it would overtake an earlier pending write to the same blocks. Pages that were not copied by then
    /// have the data in both contents.
    package func reissues(at moment: ReissueMoment, anyPageCopied: Bool) -> Bool { moment == .originalCompleted && anyPageCopied }

    /// Never through the overlay, where there may be newer writes.
    package var reissueSource: ReissueSource { .parent }

    /// A read that is issued again could see a later pending write to its blocks: claim 16.
    package func mustWaitBeforeResuming(_ pending: [RuledRequest]) -> Bool {
        pending.indices.contains { later in
            pending[later].operation == .write
                && pending[..<later].contains { $0.operation == .read && $0.range.overlaps(pending[later].range) }
        }
    }

    /// Devices' writes do not trap: claims 15 and 26.
    package func pagesToPreserve(before read: GuestBuffer) -> Range<PageIndex> { read.pages }

    /// The new write copies the rest of its groups, and would copy what the pending write is about to change: claims 18 and 28.
    package func holds(_ new: RuledRequest, forPending pending: RuledRequest) -> Bool {
        pending.operation == .write && new.groups.overlaps(pending.groups)
    }
}
