// The locks of one simulated handle.
//
// Invariant: a refused or timed-out lock has changed nothing. Inside a simulation waiting is done by
// the scheduler in simulated time, outside of one by the calling thread in real time.

import Foundation
import Media
import Units

/// The lock space of one handle; a view, so that every `locks` of one medium is the same thing.
final class HandleLocks: LockSpace {
    private let medium: FaultMedium

    init(medium: FaultMedium) { self.medium = medium }

    func tryLock(_ range: LockRange, _ mode: LockMode) throws(MediumError) -> Bool {
        let call = call(.lock, range)
        switch try medium.begin(call) {
        case nil: break
        case .pretendLock: return true
        case .some(let effect): throw medium.failure(effect, call)
        }
        try checkMode(mode, call)
        return take(range, mode)
    }

    func lock(_ range: LockRange, _ mode: LockMode, timeout: Duration?) throws(MediumError) {
        let call = call(.lock, range)
        switch try medium.begin(call) {
        case nil: break
        case .pretendLock: return
        case .some(let effect): throw medium.failure(effect, call)
        }
        try checkMode(mode, call)
        let isTaken =
            if let process = medium.process {
                try waitSimulated(in: process, range, mode, timeout, call)
            } else {
                waitReally(range, mode, timeout)
            }
        guard isTaken else {
            let names = holders(of: range).map(\.description).joined(separator: ", ")
            throw medium.error(.busy, call, reason: "locked by \(names.isEmpty ? "nobody any more" : names)")
        }
    }

    func unlock(_ range: LockRange) throws(MediumError) {
        let call = call(.unlock, range)
        switch try medium.begin(call) {
        case nil: break
        case .pretendLock: return
        case .some(let effect): throw medium.failure(effect, call)
        }
        medium.device.state.with { state in
            state.locks.release(range, of: medium.number)
            state.append(.unlock(range), by: medium.number)
        }
        medium.device.state.broadcast()
    }

    func isFree(_ range: LockRange, for mode: LockMode) throws(MediumError) -> Bool {
        let call = call(.queryLock, range)
        switch try medium.begin(call) {
        case nil: break
        case .pretendLock: return true
        case .some(let effect): throw medium.failure(effect, call)
        }
        return medium.device.state.with { $0.locks.conflicts(for: medium.number, range, mode).isEmpty }
    }

    func holders(of range: LockRange) -> [LockHolder] {
        medium.device.state.with { state in
            var seen: Set<HandleNumber> = []
            return state.locks.others(than: medium.number, on: range).compactMap { lock in
                seen.insert(lock.owner).inserted ? state.holders[lock.owner] : nil
            }
        }
    }

    private func call(_ operation: OperationKind, _ range: LockRange) -> MediumCall {
        MediumCall(operation: operation, handle: medium.number, lockRange: range)
    }

    private func checkMode(_ mode: LockMode, _ call: MediumCall) throws(MediumError) {
        guard mode == .shared || !medium.traits.isReadOnly else {
            throw medium.error(.readOnly, call, reason: "an exclusive lock needs a handle that can write")
        }
    }

    /// Tries once; both outcomes are events.
    private func take(_ range: LockRange, _ mode: LockMode) -> Bool {
        let isTaken = medium.device.state.with { state in
            let isTaken = state.locks.take(range, mode, for: medium.number)
            state.append(.lock(range, mode, isGranted: isTaken), by: medium.number)
            return isTaken
        }
        // A downgrade lets others in.
        if isTaken { medium.device.state.broadcast() }
        return isTaken
    }

    private func waitReally(_ range: LockRange, _ mode: LockMode, _ timeout: Duration?) -> Bool {
        if take(range, mode) { return true }
        let deadline = timeout.map { Date(timeIntervalSinceNow: $0 / .seconds(1)) }
        let taken: Void? = medium.device.state.wait(until: deadline) { state in
            guard state.locks.take(range, mode, for: medium.number) else { return nil }
            state.append(.lock(range, mode, isGranted: true), by: medium.number)
        }
        return taken != nil
    }

    private func waitSimulated(
        in process: SimulatedProcess, _ range: LockRange, _ mode: LockMode, _ timeout: Duration?, _ call: MediumCall
    ) throws(MediumError) -> Bool {
        let deadline = timeout.map { process.now + $0 }
        while !take(range, mode) {
            let (device, number) = (medium.device, medium.number)
            let isFree = try process.wait(
                until: deadline, call, for: "\(mode) lock on bytes \(range.start)+\(range.count)"
            ) {
                device.state.with { $0.locks.conflicts(for: number, range, mode).isEmpty }
            }
            if !isFree { return false }
        }
        return true
    }
}
