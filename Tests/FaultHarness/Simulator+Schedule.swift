// Who gets the turn next, who dies, and when it is over: the decisions of the simulator, all of them
// made under its mutex and by its seed.
//
// Invariants:
// - Choices are drawn in the order of the steps; kills and cut writes have a generator of their own, so
//   that turning them on does not change the schedule up to the first of them.
// - Once there is a verdict nobody is started again.

extension Simulator.State {
    mutating func add(
        _ name: String, incarnation: Int, restarts: Int, _ body: @escaping @Sendable (SimulatedProcess) throws -> Void,
        simulator: Simulator
    ) -> SimulatedProcess {
        let process = SimulatedProcess(
            name: name, number: members.count + 1, incarnation: incarnation, simulator: simulator)
        members.append(Simulator.Member(process: process, body: body, restartCount: restarts))
        return process
    }

    /// A new incarnation of a killed process, if it has any left and the machine still runs.
    mutating func restart(after index: Int, simulator: Simulator) -> SimulatedProcess? {
        let member = members[index]
        guard member.isDead, member.restartCount > 0, verdict == nil else { return nil }
        return add(
            member.process.name, incarnation: member.process.incarnation + 1, restarts: member.restartCount - 1,
            member.body, simulator: simulator)
    }

    /// Counts a step of the current process and lets the faults strike that belong to it.
    mutating func advance() {
        steps += 1
        now += options.stepDuration
        for fault in options.faults {
            switch fault {
            case .kill(let name, steps):
                members.indices.filter { members[$0].process.name == name }.forEach { kill($0) }
            case .killRunning(steps): kill(current)
            case .powerCut(steps): end(.powerCut(step: steps))
            case .kill, .killRunning, .powerCut: break
            }
        }
        if options.killsPerThousandSteps > 0, chaos.chance(options.killsPerThousandSteps, in: 1000) { kill(current) }
        if steps >= options.maximumSteps { end(.livelock(step: steps)) }
    }

    /// Who gets the turn; nil when all have ended. The dying come first, one after the other.
    mutating func pick(simulator: Simulator) -> SimulatedProcess? {
        if let dying = members.indices.first(where: { members[$0].isDead && !members[$0].isFinished }) {
            return giveTurn(to: dying)
        }
        let runnable = members.indices.filter { isRunnable($0) }
        if !runnable.isEmpty {
            let staysPut = runnable.contains(current) && !schedule.chance(options.switchPercent, in: 100)
            return giveTurn(to: staysPut ? current : runnable[schedule.below(runnable.count)])
        }
        let waiting = members.indices.filter { !members[$0].isFinished }
        if waiting.isEmpty { return nil }
        if let (index, deadline) = earliestDeadline(of: waiting) {
            now = max(now, deadline)
            return giveTurn(to: index)
        }
        end(.deadlock(describeDeadlock(waiting)))
        return pick(simulator: simulator)
    }

    private mutating func giveTurn(to index: Int) -> SimulatedProcess {
        if case .waiting(_, _, let isReady) = members[index].status { members[index].timedOut = !isReady() }
        members[index].status = .ready
        current = index
        turns.append(index + 1)
        return members[index].process
    }

    private func isRunnable(_ index: Int) -> Bool {
        switch members[index].status {
        case .ready: true
        case .finished: false
        case .waiting(let deadline, _, let isReady): deadline.map { $0 <= now } ?? false || isReady()
        }
    }

    private func earliestDeadline(of indexes: [Int]) -> (Int, Duration)? {
        indexes.compactMap { index in
            if case .waiting(let deadline?, _, _) = members[index].status { (index, deadline) } else { nil }
        }.min { $0.1 < $1.1 }
    }

    private mutating func kill(_ index: Int) {
        guard !members[index].isDead, !members[index].isFinished else { return }
        members[index].isDead = true
        members[index].status = .ready
        for medium in members[index].handles { medium.die() }
    }

    private mutating func end(_ verdict: SimulationReport.Verdict) {
        guard self.verdict == nil else { return }
        self.verdict = verdict
        members.indices.forEach { kill($0) }
    }

    private func describeDeadlock(_ indexes: [Int]) -> String {
        let waits = indexes.map { index in
            if case .waiting(_, let reason, _) = members[index].status {
                "\(members[index].process.name) waits for \(reason)"
            } else {
                "\(members[index].process.name) waits"
            }
        }
        var devices: [SimulatedDevice] = []
        for medium in indexes.flatMap({ members[$0].handles }) where !devices.contains(where: { $0 === medium.device })
        {
            devices.append(medium.device)
        }
        return (waits + devices.flatMap(\.lockSummary)).joined(separator: "; ")
    }

    func report(seed: UInt64) -> SimulationReport {
        SimulationReport(
            seed: seed, steps: steps, verdict: verdict ?? .finished,
            outcomes: members.map { member in
                SimulationReport.Outcome(
                    name: member.process.name, incarnation: member.process.incarnation, wasKilled: member.isDead,
                    error: member.isDead ? nil : member.error)
            },
            turns: turns)
    }
}

extension Simulator.Member {
    var isFinished: Bool { if case .finished = status { true } else { false } }
}

extension FaultMedium {
    /// What the death of its process does to a handle: its locks are gone.
    func die() {
        device.state.with { state in
            state.locks.releaseAll(of: number)
            state.append(.kill, by: number)
        }
        device.state.broadcast()
    }
}
