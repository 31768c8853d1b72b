// Several guests in one process.
//
// Invariants:
// - A device belongs to one guest: nobody else changes what a guest that is rolled back reads again.
// - Nothing that is done to one guest waits for another one.

import CheckpointCore
import MachineMemory
import Threading

/// The guests of a process, by name. Thread-safe.
public final class GuestController: Sendable {
    private struct State {
        var guests: [String: RollbackGuest] = [:]
        /// The guest that has a device, by the device's name.
        var owners: [String: String] = [:]
    }
    private let state = Lock(State())

    public init() {}

    /// Makes a guest. Its processors go on with its first checkpoint.
    ///
    /// - Throws: `.busy` when a guest of this name is there, or another one has one of the devices; what making it throws.
    public func add(
        _ name: String, memory: GuestMemory, processors: [any GuestProcessor], devices: [MirroredDevice] = [],
        options: GuestOptions = GuestOptions()
    ) throws(EngineError) -> RollbackGuest {
        let names = devices.flatMap { $0.halves.map(\.name) }
        return try state.withLock { (state) throws(EngineError) in
            guard state.guests[name] == nil else {
                throw EngineError(.busy, "there is a guest of this name", remedy: "Choose another name.", place: name)
            }
            for (index, device) in names.enumerated() {
                guard state.owners[device] == nil, !names[..<index].contains(device) else {
                    throw EngineError(
                        .busy, "the device belongs to \(state.owners[device] ?? name) already",
                        remedy: "Give each guest devices of its own, with names of their own.", place: device)
                }
            }
            let guest = try RollbackGuest(name, memory: memory, processors: processors, devices: devices, options: options)
            state.guests[name] = guest
            for device in names { state.owners[device] = name }
            return guest
        }
    }

    /// The guest of a name.
    /// - Throws: `.notFound`.
    public func guest(_ name: String) throws(EngineError) -> RollbackGuest {
        guard let guest = state.withLock({ $0.guests[name] }) else {
            throw EngineError(.notFound, "there is no such guest", remedy: "Look at the names of the guests.", place: name)
        }
        return guest
    }

    /// All guests, in the order of their names.
    public var guests: [RollbackGuest] { state.withLock { $0.guests.values.sorted { $0.name < $1.name } } }

    /// Makes a guest's present state its checkpoint.
    /// - Throws: `.notFound`; as `RollbackGuest.checkpoint` does.
    @discardableResult
    public func checkpoint(_ name: String) throws(EngineError) -> GuestCheckpointReport { try guest(name).checkpoint() }

    /// Rolls one guest back; the others go on.
    /// - Throws: `.notFound`; as `RollbackGuest.rollBack` does.
    @discardableResult
    public func rollBack(_ name: String) throws(EngineError) -> GuestRollbackReport { try guest(name).rollBack() }

    /// Closes a guest; its devices can be given to another one.
    /// - Throws: `.notFound`.
    public func remove(_ name: String) throws(EngineError) {
        let removed = try guest(name)
        removed.close()
        state.withLock { state in
            state.guests[name] = nil
            state.owners = state.owners.filter { $0.value != name }
        }
    }

    /// Closes all guests.
    public func close() {
        let all = state.withLock { state in
            defer { state = State() }
            return Array(state.guests.values)
        }
        for guest in all { guest.close() }
    }
}
