// Each rule at the edges, switched off: the programme that finds nothing wrong with the rules as they are has to notice.

import FaultHarness
import MachineMemory
import Testing
import Units
import VirtualDisks

/// The mutants of system A.
enum Mutant: String, CaseIterable, Sendable {
    /// 815 reads through the overlay, where a newer write may be.
    case reissuesThroughOverlay
    /// 815 reads as soon as the machine goes on, and may overtake an earlier pending write.
    case reissuesBeforeOriginalCompleted
    /// 812 does not wait: what is read again sees a later pending write.
    case neverWaitsBeforeResuming
    /// 816 does not force copies: devices write into the checkpoint's pages.
    case neverForcesCopies
    /// 818 does not hold a write in a group with a pending one: the group is copied without it.
    case neverHoldsGroups
}

/// The rules, but for one.
struct BrokenRules: DiskRules {
    let mutant: Mutant
    private let standard = StandardDiskRules()

    init(_ mutant: Mutant) { self.mutant = mutant }

    func reissues(at moment: ReissueMoment, anyPageCopied: Bool) -> Bool {
        mutant == .reissuesBeforeOriginalCompleted ? moment == .machineResumes : standard.reissues(at: moment, anyPageCopied: anyPageCopied)
    }

    var reissueSource: ReissueSource { mutant == .reissuesThroughOverlay ? .ongoing : standard.reissueSource }

    func mustWaitBeforeResuming(_ pending: [RuledRequest]) -> Bool {
        mutant != .neverWaitsBeforeResuming && standard.mustWaitBeforeResuming(pending)
    }

    func pagesToPreserve(before read: GuestBuffer) -> Range<PageIndex> {
        mutant == .neverForcesCopies ? read.pages.lowerBound..<read.pages.lowerBound : standard.pagesToPreserve(before: read)
    }

    func holds(_ new: RuledRequest, forPending pending: RuledRequest) -> Bool {
        mutant != .neverHoldsGroups && standard.holds(new, forPending: pending)
    }
}

@Suite(.serialized) struct MutantTests {
    @Test(arguments: Mutant.allCases)
    func `a rule that is not followed is noticed by the interleavings around the instant`(_ mutant: Mutant) async throws {
        let family: WorkloadFamily = mutant == .reissuesThroughOverlay ? .reissue : .instant
        let failure = try await onPlainThread {
            do { _ = try family.explore(BrokenRules(mutant)) } catch { return "\(error)" }
            return ""
        }
        print("\(mutant): \(failure)")
        #expect(failure.contains(Self.consequences[mutant]!))
    }

    /// The others need three or four requests in one order among many, which chance seldom finds.
    @Test(arguments: [Mutant.neverForcesCopies, .neverHoldsGroups])
    func `a rule that is not followed is noticed by long programs`(_ mutant: Mutant) async throws {
        let found = try await onPlainThread {
            for seed in UInt64(1)...1000 where seed & 8 == 0 {
                do { try RandomWorkload(rules: BrokenRules(mutant)).run(seed: seed) } catch { return "\(error)" }
            }
            return ""
        }
        print("\(mutant): \(found)")
        #expect(!found.isEmpty)
    }

    /// What breaks: not anything, but what the rule is there for.
    private static let consequences: [Mutant: String] = [
        .reissuesThroughOverlay: "the checkpointed memory", .reissuesBeforeOriginalCompleted: "the checkpointed memory",
        .neverWaitsBeforeResuming: "the checkpointed memory", .neverForcesCopies: "the checkpointed memory",
        .neverHoldsGroups: "the ongoing disk",
    ]
}
