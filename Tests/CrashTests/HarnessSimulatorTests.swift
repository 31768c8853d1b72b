// The simulator is deterministic, finds races, and ends whatever gets stuck.

import FaultHarness
import Media
import Testing
import Units

/// Some processes that each add one to the toy's value a few times.
private func incrementTogether(
    _ defect: ToyStore.Defect? = nil, seed: UInt64, processes: Int = 3, times: Int = 3,
    restarts: Int = 0, _ change: (inout Simulator.Options) -> Void = { _ in }
) -> (SimulationReport, SimulatedDevice) {
    let device = SimulatedDevice(size: ToyStore.deviceSize)
    var options = Simulator.Options()
    change(&options)
    let simulator = Simulator(seed: seed, options: options)
    for number in 0..<processes {
        simulator.spawn("adder-\(number)", restarts: restarts) { process in
            let store = ToyStore(medium: process.open(device), defect: defect)
            for _ in 0..<times {
                try store.increment()
                device.mark("added")
            }
        }
    }
    return (simulator.run(), device)
}

private func requireTotal(_ wanted: UInt64, on device: SimulatedDevice) throws {
    let found = try ToyStore(medium: FaultMedium(device)).load().value
    try require(found == wanted, "the total is \(found), not \(wanted)")
}

@Test func `equal seeds give equal runs and different seeds different ones`() {
    var logs: Set<[String]> = []
    for seed in 0..<5 as Range<UInt64> {
        let (first, firstDevice) = incrementTogether(seed: seed) { $0.killsPerThousandSteps = 5 }
        let (second, secondDevice) = incrementTogether(seed: seed) { $0.killsPerThousandSteps = 5 }
        let log = firstDevice.log.map(\.description)
        #expect(log == secondDevice.log.map(\.description) && first.turns == second.turns)
        #expect(firstDevice.bytes(at: .zero, count: 262_144) == secondDevice.bytes(at: .zero, count: 262_144))
        logs.insert(log)
    }
    #expect(logs.count == 5)
}

@Test func `processes that lock lose nothing under any schedule`() async throws {
    _ = try await onPlainThread {
        try Simulator.explore("locked-adders", seeds: 0..<200) { seed in
            let (report, device) = incrementTogether(seed: seed)
            try report.requireSuccess()
            try requireTotal(9, on: device)
        }
    }
}

@Test(arguments: [ToyStore.Defect.readsBeforeItLocks, .neverLocks])
func `a race is found and its seed finds it again`(_ defect: ToyStore.Defect) async throws {
    func run(_ seed: UInt64) throws {
        let (report, device) = incrementTogether(defect, seed: seed)
        try report.requireSuccess()
        try requireTotal(9, on: device)
    }
    let failure = #expect(throws: SimulationFailure.self) {
        try Simulator.explore("racing-adders", seeds: 0..<200, run)
    }
    let seed = try #require(failure?.seed)
    #expect(throws: (any Error).self) { try run(seed) }
    #expect(failure?.description.contains("CKSTORE_SIMULATION_REPLAY='racing-adders \(seed)'") == true)
}

@Test func `a lock that the medium only pretends to give is found as a race`() throws {
    #expect(throws: (any Error).self) {
        for seed in 0..<100 as Range<UInt64> {
            let device = SimulatedDevice(size: ToyStore.deviceSize)
            device.faults.add(FaultRule(.lock, .from(1), .pretendLock))
            let simulator = Simulator(seed: seed)
            for number in 0..<2 {
                simulator.spawn("adder-\(number)") { process in
                    let store = ToyStore(medium: process.open(device))
                    for _ in 0..<3 { try store.increment() }
                }
            }
            try simulator.run().requireSuccess()
            try requireTotal(6, on: device)
        }
    }
}

@Test func `a process that dies at any step leaves its locks to the others`() async throws {
    try await onPlainThread {
        let steps = incrementTogether(seed: 1).0.steps
        for step in 1...steps {
            let (report, device) = incrementTogether(seed: 1) { $0.faults = [.killRunning(step: step)] }
            try report.requireSuccess()
            try require(report.outcomes.filter(\.wasKilled).count == 1, "not just one died at step \(step)")
            try require(device.lockSummary.isEmpty, "\(device.lockSummary) after a death at step \(step)")
            // What was acknowledged counts, and the dead one's last addition may.
            let acknowledged = UInt64(device.log.marks.count)
            let found = try ToyStore(medium: FaultMedium(device)).load().value
            try require((acknowledged...acknowledged + 1).contains(found), "\(found) after a death at step \(step)")
        }
    }
}

@Test func `a killed process starts again as often as allowed`() {
    let (report, _) = incrementTogether(seed: 9, processes: 2, restarts: 2) { options in
        options.faults = [.kill("adder-0", step: 4), .kill("adder-0", step: 9)]
    }
    #expect(report.verdict == .finished)
    #expect(report.outcomes.filter { $0.name == "adder-0" }.map(\.incarnation) == [0, 1, 2])
    #expect(report.outcomes.filter { $0.name == "adder-0" }.map(\.wasKilled) == [true, true, false])
}

@Test func `a power cut at any step leaves the last acknowledged commit or a later one`() async throws {
    try await onPlainThread {
        let steps = incrementTogether(seed: 2).0.steps
        for step in 1...steps {
            let (report, device) = incrementTogether(seed: 2) { $0.faults = [.powerCut(step: step)] }
            try require(report.verdict == .powerCut(step: step), "\(report.verdict) at step \(step)")
            for mode in [CrashMode.none, .all, .randomSubset, .tornSectors] {
                let image = device.powerCut(mode, seed: UInt64(step))
                let value = try ToyStore(medium: FaultMedium(image.device)).load().value
                let acknowledged = UInt64(image.marks.count)
                try require((acknowledged...acknowledged + 1).contains(value), "\(value) after step \(step), \(mode)")
            }
        }
    }
}

@Test func `a deadlock is reported with who waits and who holds`() throws {
    let device = SimulatedDevice(size: .mebibytes(1))
    let failure = #expect(throws: SimulationFailure.self) {
        try Simulator.explore("deadlock", seeds: 0..<100) { seed in
            let simulator = Simulator(seed: seed)
            for (name, order) in [("first", [1, 2]), ("second", [2, 1])] as [(String, [UInt64])] {
                simulator.spawn(name) { process in
                    let locks = process.open(device).locks
                    for start in order { try locks.lock(LockRange(start: start), .exclusive, timeout: nil) }
                }
            }
            try simulator.run().requireSuccess()
        }
    }
    let reason = try #require(failure?.reason)
    #expect(reason.contains("deadlock") && reason.contains("first waits for") && reason.contains("(second): exclusive"))
    #expect(device.lockSummary.isEmpty)
}

@Test func `a lock times out in simulated time`() throws {
    let device = SimulatedDevice(size: .mebibytes(1))
    let simulator = Simulator(seed: 4)
    simulator.spawn("holder") { process in
        let locks = process.open(device).locks
        try locks.lock(LockRange(start: 1), .exclusive, timeout: nil)
        try process.sleep(for: .seconds(3600))
        try require(process.now >= .seconds(3600), "woken too early")
    }
    simulator.spawn("waiter") { process in
        try process.sleep(for: .seconds(1))
        do {
            try process.open(device).locks.lock(LockRange(start: 1), .shared, timeout: .seconds(60))
            throw Wrong("a held lock was granted")
        } catch let error as MediumError where error.code == .busy {
            try require(error.reason.contains("holder") && process.now < .seconds(62), "\(error) at \(process.now)")
        }
    }
    try simulator.run().requireSuccess()
}

@Test func `a process that never ends is a livelock or goes on in vain after its death`() {
    let device = SimulatedDevice(size: .mebibytes(1))
    var options = Simulator.Options()
    options.maximumSteps = 500
    for ignoresErrors in [false, true] {
        let simulator = Simulator(seed: 1, options: options)
        simulator.spawn("spinner") { process in
            let medium = process.open(device)
            while true { do { try medium.flush() } catch { if !ignoresErrors { throw error } } }
        }
        let verdict = simulator.run().verdict
        if ignoresErrors {
            #expect(verdict == .stalled("spinner goes on calling the medium after it was killed"))
        } else {
            #expect(verdict == .livelock(step: 500))
        }
    }
}

@Test func `an error in one process is reported with the seed`() {
    let simulator = Simulator(seed: 77)
    simulator.spawn("thrower") { _ in throw Wrong("on purpose") }
    let failure = #expect(throws: SimulationFailure.self) { try simulator.run().requireSuccess() }
    #expect(failure?.seed == 77 && failure?.reason.contains("thrower") == true)
}

@Test func `a process can die in the middle of a write`() {
    var landed: Set<Int> = []
    for seed in 0..<300 as Range<UInt64> {
        let device = SimulatedDevice(size: .mebibytes(1))
        var options = Simulator.Options()
        options.faults = [.killRunning(step: 2)]
        let simulator = Simulator(seed: seed, options: options)
        simulator.spawn("writer") { process in try process.open(device).fill(1, at: .zero, count: 4096) }
        _ = simulator.run()
        landed.insert(device.bytes(at: .zero, count: 4096).count { $0 == 1 })
    }
    #expect(landed.contains(4096) && landed.count > 4)
    #expect(landed.allSatisfy { $0 > 0 && $0 % 512 == 0 })
}

@Test func `reads are points of their own only when asked for`() {
    let quiet = incrementTogether(seed: 3, processes: 1).0.steps
    let thorough = incrementTogether(seed: 3, processes: 1) { $0.yieldsAtReads = true }.0.steps
    #expect(thorough > quiet)
}
