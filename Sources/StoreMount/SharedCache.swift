// What many readers need again, in bounded memory: the least recently used goes first.
//
// Invariants:
// - The costs of what is kept never add up to more than the capacity.
// - A value that several threads want at once is made once; those that come later wait. A failure is not kept: whoever waited
//   tries for itself.

import CheckpointStore
import Threading
import Units

/// Values by key, bounded by their cost. Thread-safe.
final class SharedCache<Key: Hashable & Sendable, Value: Sendable>: Sendable {
    private struct Node {
        var key: Key
        var value: Value
        var cost: UInt64
        /// Neighbours in the order of use; `none` at the ends.
        var newer: Int
        var older: Int
    }

    private struct State {
        /// Freed places are nil, and listed in `free`.
        var nodes: [Node?] = []
        var free: [Int] = []
        var places: [Key: Int] = [:]
        var newest = none
        var oldest = none
        var cost: UInt64 = 0
        var underWay: Set<Key> = []
    }

    private let state = Lock(State())
    private let capacity: ByteCount

    init(capacity: ByteCount) { self.capacity = capacity }

    /// What is kept costs this much.
    var cost: ByteCount { ByteCount(state.withLock { $0.cost }) }

    func contains(_ key: Key) -> Bool { state.withLock { $0.places[key] != nil || $0.underWay.contains(key) } }

    /// The value of `key`, made by `make` when it is not there; `make` also says what keeping it costs.
    func value(
        _ key: Key, _ make: () throws(StoreError) -> (value: Value, cost: ByteCount)
    ) throws(StoreError) -> Value {
        let known: Value? = state.waitFor { state -> Value?? in
            if let place = state.places[key] {
                Self.use(place, &state)
                return .some(state.nodes[place]!.value)
            }
            // Not yet: somebody is making it.
            guard state.underWay.insert(key).inserted else { return nil }
            return .some(nil)
        }
        if let known { return known }
        let made: (value: Value, cost: ByteCount)
        do { made = try make() } catch {
            state.withLock { _ = $0.underWay.remove(key) }
            state.wake()
            throw error
        }
        let gone = state.withLock { state in
            state.underWay.remove(key)
            return insert(key, made.value, made.cost.rawValue, &state)
        }
        state.wake()
        // What was thrown out is freed here, without the lock.
        withExtendedLifetime(gone) {}
        return made.value
    }

    /// Forgets a value, if it is there.
    func remove(_ key: Key) {
        let gone = state.withLock { state in state.places[key].map { Self.take($0, &state) } }
        withExtendedLifetime(gone) {}
    }

    private func insert(_ key: Key, _ value: Value, _ cost: UInt64, _ state: inout State) -> [Value] {
        guard cost <= capacity.rawValue else { return [] }
        var gone: [Value] = []
        while state.cost + cost > capacity.rawValue { gone.append(Self.take(state.oldest, &state)) }
        let place = state.free.popLast() ?? state.nodes.count
        if place == state.nodes.count { state.nodes.append(nil) }
        state.nodes[place] = Node(key: key, value: value, cost: cost, newer: none, older: none)
        state.places[key] = place
        state.cost += cost
        Self.link(place, &state)
        return gone
    }

    private static func use(_ place: Int, _ state: inout State) {
        guard state.newest != place else { return }
        unlink(place, &state)
        link(place, &state)
    }

    private static func link(_ place: Int, _ state: inout State) {
        state.nodes[place]!.older = state.newest
        state.nodes[place]!.newer = none
        if state.newest != none { state.nodes[state.newest]!.newer = place } else { state.oldest = place }
        state.newest = place
    }

    private static func unlink(_ place: Int, _ state: inout State) {
        let (newer, older) = (state.nodes[place]!.newer, state.nodes[place]!.older)
        if newer != none { state.nodes[newer]!.older = older } else { state.newest = older }
        if older != none { state.nodes[older]!.newer = newer } else { state.oldest = newer }
    }

    /// Takes a value out and returns it.
    private static func take(_ place: Int, _ state: inout State) -> Value {
        unlink(place, &state)
        let node = state.nodes[place]!
        state.nodes[place] = nil
        state.free.append(place)
        state.places[node.key] = nil
        state.cost -= node.cost
        return node.value
    }
}

/// No place.
private let none = -1
