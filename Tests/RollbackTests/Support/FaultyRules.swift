// Faults between steps, and rules that are not followed.

import CheckpointCore
import Rollback
import Threading
import Units

/// Throws at the n-th step of all, counted from 1, and at no other; counts them.
final class FaultAtStep: RollbackRules {
    private let state: Lock<(count: Int, target: Int, fired: RollbackStep?)>
    private let standard = StandardRollbackRules()

    init() { state = Lock((0, 0, nil)) }

    /// The fault comes at the n-th step from now on; 0: never.
    func arm(_ target: Int) { state.withLock { $0 = (0, target, nil) } }
    /// How many steps there were since then.
    var count: Int { state.withLock { $0.count } }
    /// Where the fault came.
    var fired: RollbackStep? { state.withLock { $0.fired } }

    func step(_ step: RollbackStep) throws(EngineError) {
        let isHit = state.withLock { state in
            state.count += 1
            if state.count == state.target { state.fired = step }
            return state.count == state.target
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
