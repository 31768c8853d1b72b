// Which checkpoints to keep: a pure function of what there is and of the time.
//
// Invariants:
// - A checkpoint that some name leads to is kept, whatever the policy says.
// - A rule with a larger number keeps all that it keeps with a smaller one; the order of the input does not matter.
// - Applied to what it has kept, at the same time, a policy keeps all of it.

import Units

/// Rules that say which checkpoints to keep. What no rule keeps can go.
public struct RetentionPolicy: Sendable, Hashable {
    /// A label that a checkpoint must have to be kept for it.
    public struct LabelRule: Sendable, Hashable {
        public var key: String
        /// nil: whatever its value.
        public var value: String?

        public init(key: String, value: String? = nil) {
            self.key = key
            self.value = value
        }

        /// Whether `labels` have it.
        public func matches(_ labels: [(key: String, value: String)]) -> Bool {
            labels.contains { $0.key == key && (value == nil || $0.value == value) }
        }
    }

    /// How many of the newest are kept.
    public var last = 0
    /// Those begun less long ago than this are kept; 0: no such rule.
    public var withinNanoseconds: UInt64 = 0
    /// Of how many periods that have any, the latest ones, the newest checkpoint is kept. Periods are those of UTC; weeks begin on Mondays.
    public var periods: [RetentionPeriod: Int] = [:]
    /// Those that have one of these labels are kept.
    public var labels: [LabelRule] = []

    /// A policy that keeps nothing but what names lead to.
    public init() {}

    /// Whether there is no rule at all.
    public var isEmpty: Bool { last <= 0 && withinNanoseconds == 0 && periods.values.allSatisfy { $0 <= 0 } && labels.isEmpty }

    /// Why a checkpoint is kept.
    public enum Reason: Sendable, Hashable {
        /// A name leads to it.
        case referenced(String)
        case last, within
        case period(RetentionPeriod)
        case label(LabelRule)
    }

    /// What a policy looks at.
    public struct Candidate: Sendable {
        public var id: CheckpointID
        public var createdNanoseconds: UInt64
        public var labels: [(key: String, value: String)]
        /// The moving names that lead to it.
        public var references: [String]

        public init(id: CheckpointID, createdNanoseconds: UInt64, labels: [(key: String, value: String)], references: [String]) {
            self.id = id
            self.createdNanoseconds = createdNanoseconds
            self.labels = labels
            self.references = references
        }
    }

    /// Why each of `candidates` that is to be kept is; those that can go are not in the result. O(n log n).
    ///
    /// - Parameter now: nanoseconds since 1970-01-01 UTC. What was begun later than that counts as just begun.
    public func kept(of candidates: [Candidate], now: UInt64) -> [CheckpointID: [Reason]] {
        let newestFirst = candidates.sorted { ($0.createdNanoseconds, $0.id) > ($1.createdNanoseconds, $1.id) }
        var kept: [CheckpointID: [Reason]] = [:]
        func keep(_ candidate: Candidate, _ reason: Reason) { kept[candidate.id, default: []].append(reason) }
        for candidate in newestFirst { for name in candidate.references { keep(candidate, .referenced(name)) } }
        for candidate in newestFirst.prefix(max(0, last)) { keep(candidate, .last) }
        if withinNanoseconds > 0 {
            let age = { (candidate: Candidate) in now > candidate.createdNanoseconds ? now - candidate.createdNanoseconds : 0 }
            for candidate in newestFirst where age(candidate) < withinNanoseconds { keep(candidate, .within) }
        }
        for period in RetentionPeriod.allCases {
            var left = periods[period] ?? 0
            var current: UInt64?
            for candidate in newestFirst {
                let number = period.number(at: candidate.createdNanoseconds)
                guard number != current else { continue }
                guard left > 0 else { break }
                left -= 1
                current = number
                keep(candidate, .period(period))
            }
        }
        for rule in labels { for candidate in newestFirst where rule.matches(candidate.labels) { keep(candidate, .label(rule)) } }
        return kept
    }
}

/// A period of which one checkpoint is kept.
public enum RetentionPeriod: String, Sendable, Hashable, CaseIterable {
    case hourly, daily, weekly, monthly

    /// The number of the period that a time lies in: equal for times in one period, rising with time.
    public func number(at nanoseconds: UInt64) -> UInt64 {
        let hours = nanoseconds / 3_600_000_000_000
        let days = hours / 24
        switch self {
        case .hourly: return hours
        case .daily: return days
        // 1970-01-01 was a Thursday.
        case .weekly: return (days + 3) / 7
        case .monthly: return Self.month(ofDay: days)
        }
    }

    /// Months since March of the year 0, from days since 1970-01-01: the calendar repeats every 146097 days, and counted from March each
    /// run of five months has 153 days.
    private static func month(ofDay days: UInt64) -> UInt64 {
        let shifted = days + 719_468
        let (era, day) = (shifted / 146_097, shifted % 146_097)
        let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365
        let dayOfYear = day - (365 * year + year / 4 - year / 100)
        return (era * 400 + year) * 12 + (5 * dayOfYear + 2) / 153
    }
}
