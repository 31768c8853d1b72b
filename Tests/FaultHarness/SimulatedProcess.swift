// One simulated process: what its code uses to reach devices and simulated time.
//
// Invariant: its code runs only while the scheduler has given it the turn, on a thread of its own, and
// touches media on no other thread.

import Dispatch
import Media

extension MediumError.Code {
    /// The simulated process has been killed, or the machine has: every call to a medium throws this.
    public static let killed = MediumError.Code(rawValue: "killed")
}

/// A process within a `Simulator`.
public final class SimulatedProcess: Sendable {
    /// Its name, as given to `spawn`.
    public let name: String
    /// Its number among all processes of the simulation, restarted ones counted anew; from 1.
    public let number: Int
    /// How often it has been started before: 0 the first time.
    public let incarnation: Int
    let simulator: Simulator
    let turn = DispatchSemaphore(value: 0)

    init(name: String, number: Int, incarnation: Int, simulator: Simulator) {
        self.name = name
        self.number = number
        self.incarnation = incarnation
        self.simulator = simulator
    }

    /// Opens a handle on a device. It is closed when the process ends, in whatever way.
    public func open(_ device: SimulatedDevice, isReadOnly: Bool = false) -> FaultMedium {
        let medium = FaultMedium(
            device, isReadOnly: isReadOnly, process: self, holder: LockHolder(process: Int32(number), command: name))
        simulator.adopt(medium, by: self)
        return medium
    }

    /// The simulated time since the start of the simulation.
    public var now: Duration { simulator.now }

    /// Lets others run for at least this much simulated time.
    public func sleep(for duration: Duration) throws(MediumError) {
        _ = try simulator.wait(self, until: now + duration, for: "the end of a sleep", isReady: { false })
    }

    /// Lets others run: a yield that is no call to a medium.
    public func yield() throws(MediumError) { try simulator.step(self, .queryLock) }

    func step(_ call: MediumCall) throws(MediumError) { try simulator.step(self, call.operation) }

    /// Waits until `isReady` (true) or the deadline (false).
    func wait(
        until deadline: Duration?, _ call: MediumCall, for reason: String, isReady: @escaping @Sendable () -> Bool
    ) throws(MediumError) -> Bool {
        try simulator.wait(self, until: deadline, for: reason, isReady: isReady)
    }

    /// Where to cut a write in two, so that others run (or death comes) in its middle; nil: nowhere.
    func splitPoint(of count: Int) -> Int? { simulator.splitPoint(of: count) }
}
