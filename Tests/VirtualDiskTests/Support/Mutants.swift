// The rules with one of them broken: each mutant of system A. A suite that does not notice one would not notice the mistake either.

import MachineMemory
import Units
import VirtualDisks

enum Mutant: String, CaseIterable {
    case reissuesThroughOverlay, reissuesBeforeOriginalCompleted, neverWaitsBeforeResuming, neverForcesCopies, neverHoldsGroups
}

struct BrokenRules: DiskRules {
    let mutant: Mutant
    private let standard = StandardDiskRules()

    init(_ mutant: Mutant) { self.mutant = mutant }

    func reissues(at moment: ReissueMoment, anyPageCopied: Bool) -> Bool {
        mutant == .reissuesBeforeOriginalCompleted ? true : standard.reissues(at: moment, anyPageCopied: anyPageCopied)
    }
    var reissueSource: ReissueSource { mutant == .reissuesThroughOverlay ? .ongoing : standard.reissueSource }
    func mustWaitBeforeResuming(_ pending: [RuledRequest]) -> Bool {
        mutant == .neverWaitsBeforeResuming ? false : standard.mustWaitBeforeResuming(pending)
    }
    func pagesToPreserve(before read: GuestBuffer) -> Range<PageIndex> {
        mutant == .neverForcesCopies ? read.pages.lowerBound..<read.pages.lowerBound : standard.pagesToPreserve(before: read)
    }
    func holds(_ new: RuledRequest, forPending pending: RuledRequest) -> Bool {
        mutant == .neverHoldsGroups ? false : standard.holds(new, forPending: pending)
    }
}
