// Faults between steps, and rules that are not followed.

import CheckpointCore
import Rollback
import Threading
import Units

/// Throws at the n-th step of one kind, counted from 1, and at no other.
final class FaultAtStep: RollbackRules {
    private let state: Lock<(target: (step: RollbackStep, number: Int)?, count: Int, hasFired: Bool)>
    private let standard = StandardRollbackRules()

    init() { state = Lock((nil, 0, false)) }

    /// The fault comes at the n-th of these steps from now on.
    func arm(_ step: RollbackStep, _ number: Int) { state.withLock { $0 = ((step, number), 0, false) } }
    /// No fault comes.
    func disarm() { state.withLock { $0 = (nil, 0, false) } }
    /// Whether the fault has come.
    var hasFired: Bool { state.withLock { $0.hasFired } }

    func step(_ step: RollbackStep) throws(EngineError) {
        let isHit = state.withLock { state in
            guard let target = state.target, target.step == step else { return false }
            state.count += 1
            if state.count == target.number { state.hasFired = true }
            return state.count == target.number
        }
        if isHit { throw EngineError(.ioFailed, "injected at \(step)") }
    }
    var copiesFirst: Bool { standard.copiesFirst }
    func replayOrder(entryCount: Int) -> [Int] { standard.replayOrder(entryCount: entryCount) }
}

/// Strategy 4 without its rule: pages that are still to be copied are written at once. Copying waits until `letGo`, so that it is sure to
/// be late.
final class NoCopyFirst: RollbackRules {
    let isHeld = Lock(true)
    /// Whether the rule is followed all the same: for the control.
    let copiesFirst: Bool

    init(copiesFirst: Bool) { self.copiesFirst = copiesFirst }

    func letGo() {
        isHeld.withLock { $0 = false }
        isHeld.wake()
    }

    func step(_ step: RollbackStep) throws(EngineError) {
        if step == .drained { isHeld.waitFor { $0 ? nil : () } }
    }
    func replayOrder(entryCount: Int) -> [Int] { (0..<entryCount).reversed() }
}

/// Strategy 6 replayed forward.
struct ForwardReplay: RollbackRules {
    let faults: FaultAtStep
    func step(_ step: RollbackStep) throws(EngineError) { try faults.step(step) }
    var copiesFirst: Bool { true }
    func replayOrder(entryCount: Int) -> [Int] { Array(0..<entryCount) }
}
