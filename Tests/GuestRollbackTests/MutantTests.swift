// Broken rules are found: each rule of system E is broken in turn, and a test that passes with the rules as they are fails.

import CheckpointCore
import FaultHarness
import GuestRollback
import MachineMemory
import Testing
import Units

/// The rules with one of them broken.
struct BrokenRules: GuestRules {
    enum Defect: String, CaseIterable {
        case writesAreNotHeld, flushesAreNotHeld, requestsOvertakeEachOther, readsDoNotSeeHeldWrites, rollbackKeepsHeld,
            rollbackDoesNotDeliverAgain
        case rollbackRepeatsUnfinished, rollbackKeepsReads, rollbackForgetsReadOnly, deviceDataIsNotTracked, failureLosesRequests
        case saveLetsWritesOvertakeReads
    }
    let defect: Defect
    private let standard = StandardGuestRules()

    init(_ defect: Defect) { self.defect = defect }

    func isHeld(_ operation: GuestRequest.Operation) -> Bool {
        switch operation {
        case .write where defect == .writesAreNotHeld, .flush where defect == .flushesAreNotHeld: false
        default: standard.isHeld(operation)
        }
    }
    func mustFollow(_ earlier: GuestRequest, _ later: GuestRequest) -> Bool {
        defect != .requestsOvertakeEachOther && standard.mustFollow(earlier, later)
    }
    var readsSeeHeldWrites: Bool { defect != .readsDoNotSeeHeldWrites }
    var rollbackDiscardsHeld: Bool { defect != .rollbackKeepsHeld }
    var rollbackDeliversAgain: Bool { defect != .rollbackDoesNotDeliverAgain }
    var rollbackRepeatsUnfinished: Bool { defect == .rollbackRepeatsUnfinished }
    var rollbackDisownsReads: Bool { defect != .rollbackKeepsReads }
    var rollbackRestoresReadOnly: Bool { defect != .rollbackForgetsReadOnly }
    var saveKeepsWritesBehindReads: Bool { defect != .saveLetsWritesOvertakeReads }
    var deviceMapping: MemoryMapping { defect == .deviceDataIsNotTracked ? unsafe \.deviceBytes : unsafe \.bytes }
    var failureRedirects: Bool { defect != .failureLosesRequests }
}

@Suite(.serialized) struct GuestMutantTests {
    @Test(arguments: BrokenRules.Defect.allCases)
    func `a broken rule is found`(_ defect: BrokenRules.Defect) async throws {
        try await onPlainThread {
            let budget = EventBudget(checkpoints: 12, rollBacks: 8, failures: defect == .failureLosesRequests ? 1 : 0)
            func search(_ rules: any GuestRules, runs: Int) -> String? {
                do {
                    if defect == .saveLetsWritesOvertakeReads {
                        for number in 0..<runs / 3 { try GuestSaveTests.dieAndGoOn(SeededGenerator(seed: 5, UInt64(number)), rules: rules) }
                        return nil
                    }
                    try exploreRandomly(seed: 11, runs: runs, length: 40, budget, mirrored: budget.failures > 0, rules: rules)
                    return nil
                } catch { return "\(error)" }
            }
            guard let found = search(BrokenRules(defect), runs: 60) else { throw TestFailure("\(defect) is not found") }
            print("\(defect): \(found.prefix(120))")
            // What is found is the rule's and not the test's.
            if let found = search(StandardGuestRules(), runs: 10) { throw TestFailure("with all rules: \(found)") }
        }
    }
}
