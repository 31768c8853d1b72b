// Which calls fail, lie or go astray: rules that pick the n-th call of a kind and say what becomes of it.
//
// Invariant: each rule counts the calls that it applies to from 1 on, starting when it was added; the
// first rule that fires decides, and the rules behind it have counted the call all the same.

import Media
import Units

/// A call to a medium, as fault rules see it.
public struct MediumCall: Sendable {
    /// What is being called.
    public var operation: OperationKind
    /// Through which handle.
    public var handle: HandleNumber
    /// Where, for calls that have a place on the medium.
    public var offset: MediumOffset?
    /// How many bytes.
    public var length: ByteCount?
    /// The lock bytes, for calls that are about locks.
    public var lockRange: LockRange?
    /// Where this handle wrote last, which tells one class of flushes from another.
    public internal(set) var previousWrite: MediumOffset?
}

/// Which calls of those that a rule applies to it fires on, counted from 1.
public enum Occurrence: Sendable {
    /// The n-th alone.
    case nth(Int)
    /// The n-th and all after it.
    case from(Int)
    /// The `first`-th and every `period`-th after it.
    case every(period: Int, first: Int)

    func includes(_ count: Int) -> Bool {
        switch self {
        case .nth(let n): count == n
        case .from(let n): count >= n
        case .every(let period, let first): count >= first && (count - first) % period == 0
        }
    }
}

/// What a failed flush does to the writes that it should have covered.
public enum FlushFailure: Sendable {
    /// Each stays unflushed; a later flush covers them.
    case keepWrites
    /// Each is marked clean and never written: what Linux does to dirty pages.
    case dropWrites
    /// As `dropWrites`, and the cache forgets them: readers see the old content.
    case revertWrites
    /// Each has one of all four fates, by seed.
    case mixed(seed: UInt64)

    func fates(count: Int) -> [WriteFate] {
        switch self {
        case .keepWrites: return Array(repeating: .kept, count: count)
        case .dropWrites: return Array(repeating: .dropped, count: count)
        case .revertWrites: return Array(repeating: .reverted, count: count)
        case .mixed(let seed):
            var generator = SeededGenerator(seed: seed)
            return (0..<count).map { _ in [.durable, .kept, .dropped, .reverted][generator.below(4)] }
        }
    }
}

/// What becomes of a call.
public enum FaultEffect: Sendable {
    /// It throws and does nothing. Any operation.
    case fail(MediumError.Code, errno: Int32 = 0)
    /// The first bytes are transferred, then it throws. Read, write.
    case shorten(to: ByteCount, MediumError.Code)
    /// It is acknowledged and nothing happens: the old content stays. Write, discard, reserve.
    case lose
    /// Readers see it, and no flush ever makes it durable. Write.
    case loseAtPowerCut
    /// It becomes durable one flush (or more) later than it should: as if it had been issued behind
    /// that flush. Write.
    case delay(flushes: Int)
    /// It lands elsewhere (write) or brings what is elsewhere (read).
    case misdirect(to: MediumOffset)
    /// It lands in its place and elsewhere as well. Write.
    case duplicate(to: MediumOffset)
    /// Some bits are wrong in what arrives: on the medium (write) or with the caller (read).
    case flipBits(Int, seed: UInt64)
    /// It brings the durable content, past what was written since the last flush. Read.
    case readStale
    /// It throws `flushFailed` and does this to the unflushed writes. Flush.
    case failFlush(FlushFailure)
    /// It is acknowledged and nothing is made durable by it. Flush.
    case ignoreFlush
    /// It is granted without being taken (lock), acknowledged without being done (unlock), or answered
    /// with "free" (query): emulates an engine that forgets to lock.
    case pretendLock

    func isMeaningful(for operation: OperationKind) -> Bool {
        switch self {
        case .fail: true
        case .shorten, .misdirect, .flipBits: operation == .read || operation == .write
        case .lose: operation == .write || operation == .discard || operation == .reserve
        case .loseAtPowerCut, .delay, .duplicate: operation == .write
        case .readStale: operation == .read
        case .failFlush, .ignoreFlush: operation == .flush
        case .pretendLock: operation == .lock || operation == .unlock || operation == .queryLock
        }
    }
}

/// "The n-th call of this kind that this applies to meets this fate."
public struct FaultRule: Sendable {
    /// The kind of call.
    public var operation: OperationKind
    /// Which of them.
    public var occurrence: Occurrence
    /// What becomes of it.
    public var effect: FaultEffect
    /// Which calls count at all.
    public var applies: @Sendable (MediumCall) -> Bool

    /// Makes a rule; an effect that the operation can't have is a programmer's mistake.
    public init(
        _ operation: OperationKind, _ occurrence: Occurrence, _ effect: FaultEffect,
        where applies: @escaping @Sendable (MediumCall) -> Bool = { _ in true }
    ) {
        precondition(effect.isMeaningful(for: operation), "\(operation) can't meet with \(effect)")
        self.operation = operation
        self.occurrence = occurrence
        self.effect = effect
        self.applies = applies
    }
}

/// The fault rules of a device or of one handle. Thread-safe.
public final class FaultPlan: Sendable {
    private struct State {
        var rules: [(rule: FaultRule, count: Int)] = []
        var callCounts: [OperationKind: Int] = [:]
        var firedCount = 0
    }

    private let state = Guarded(State())

    /// An empty plan: nothing fails.
    public init(_ rules: FaultRule...) {
        state.with { $0.rules = rules.map { ($0, 0) } }
    }

    /// Adds a rule; it counts calls from now on.
    public func add(_ rule: FaultRule) { state.with { $0.rules.append((rule, 0)) } }

    /// Removes all rules and starts counting anew.
    public func clear() { state.with { $0 = State() } }

    /// How many calls of this kind the plan has seen: the bound for "fail the n-th call, for every n".
    public func callCount(of operation: OperationKind) -> Int { state.with { $0.callCounts[operation] ?? 0 } }

    /// How often a rule has fired: 0 means that a test with a fault in it tested nothing.
    public var firedCount: Int { state.with { $0.firedCount } }

    /// Counts the call and says what becomes of it; nil: nothing special.
    func effect(on call: MediumCall) -> FaultEffect? {
        state.with { state in
            state.callCounts[call.operation, default: 0] += 1
            var effect: FaultEffect?
            for index in state.rules.indices where state.rules[index].rule.operation == call.operation {
                guard state.rules[index].rule.applies(call) else { continue }
                state.rules[index].count += 1
                if effect == nil, state.rules[index].rule.occurrence.includes(state.rules[index].count) {
                    effect = state.rules[index].rule.effect
                }
            }
            if effect != nil { state.firedCount += 1 }
            return effect
        }
    }
}
