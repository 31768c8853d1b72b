// How a simulation ended, and the search for a seed that makes it end badly.

import Foundation

/// How one run of a `Simulator` ended.
public struct SimulationReport: Sendable {
    /// Why it ended.
    public enum Verdict: Hashable, Sendable {
        /// Every process returned.
        case finished
        /// The power was cut, as planned.
        case powerCut(step: Int)
        /// Everybody waits for somebody; who waits for what and who holds what.
        case deadlock(String)
        /// It made more steps than allowed.
        case livelock(step: Int)
        /// A process computes without ever calling a medium, or goes on after its death.
        case stalled(String)
    }

    /// How one process ended.
    public struct Outcome: Sendable {
        /// The process.
        public var name: String
        /// How often it had been started before.
        public var incarnation: Int
        /// Whether it was killed; what its code threw afterwards is not kept.
        public var wasKilled: Bool
        /// What its code threw.
        public var error: (any Error)?
    }

    /// The seed that replays the run.
    public var seed: UInt64
    /// How many steps were made: the bound for faults at every step.
    public var steps: Int
    /// Why it ended.
    public var verdict: Verdict
    /// The processes, in the order of their starts.
    public var outcomes: [Outcome]
    /// Who had the turn, step by step, as process numbers.
    public var turns: [Int]

    /// Throws when a process that was not killed threw, or when they got stuck.
    public func requireSuccess() throws(SimulationFailure) {
        switch verdict {
        case .finished, .powerCut: break
        case .deadlock(let text): throw SimulationFailure(seed: seed, reason: "deadlock: \(text)")
        case .livelock(let step): throw SimulationFailure(seed: seed, reason: "no end after \(step) steps")
        case .stalled(let text): throw SimulationFailure(seed: seed, reason: "stalled: \(text)")
        }
        for outcome in outcomes {
            if let error = outcome.error {
                throw SimulationFailure(seed: seed, reason: "process \(outcome.name) threw: \(error)")
            }
        }
    }
}

/// A simulation that went wrong, with the seed that makes it go wrong again.
public struct SimulationFailure: Error, CustomStringConvertible {
    /// The seed that replays the run.
    public var seed: UInt64
    /// What went wrong.
    public var reason: String
    /// The scenario's name, when it was run by `Simulator.explore`.
    public var scenario: String?
    public var description: String {
        let replay = scenario.map { "; replay with \(Simulator.replayVariable)='\($0) \(seed)'" } ?? ""
        return "seed \(seed): \(reason)\(replay)"
    }
}

extension Simulator {
    /// The environment variable that makes `explore` run one seed only: "scenario seed".
    public static let replayVariable = "CKSTORE_SIMULATION_REPLAY"

    /// Runs `scenario` for one seed after the other until one fails, and throws that failure with its
    /// seed. Returns how many were run. With the replay variable set for this scenario, runs that seed alone.
    @discardableResult public static func explore(
        _ name: String, seeds: some Sequence<UInt64>, _ scenario: (UInt64) throws -> Void
    ) throws(SimulationFailure) -> Int {
        let words = (ProcessInfo.processInfo.environment[replayVariable] ?? "").split(separator: " ")
        if words.count == 2, words[0] == name, let seed = UInt64(words[1]) {
            try run(name, seed, scenario)
            return 1
        }
        var count = 0
        for seed in seeds {
            try run(name, seed, scenario)
            count += 1
        }
        return count
    }

    private static func run(
        _ name: String, _ seed: UInt64, _ scenario: (UInt64) throws -> Void
    ) throws(SimulationFailure) {
        do {
            try scenario(seed)
        } catch let failure as SimulationFailure {
            throw SimulationFailure(seed: seed, reason: failure.reason, scenario: name)
        } catch {
            throw SimulationFailure(seed: seed, reason: "\(error)", scenario: name)
        }
    }
}
