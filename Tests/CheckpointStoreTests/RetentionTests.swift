// What a retention policy keeps: properties over random sets of checkpoints, and calendars.

import CheckpointStore
import FaultHarness
import Foundation
import StoreTesting
import Testing
import Units

private let hour: UInt64 = 3_600_000_000_000

/// Checkpoints over some months, some of them close together, some labelled, some with names.
private func randomCandidates(_ random: inout SeededGenerator) -> [RetentionPolicy.Candidate] {
    let start = UInt64(1_700_000_000_000_000_000)
    return (0..<random.below(60)).map { number in
        let time = start + UInt64(random.below(3000)) * hour / UInt64(1 + random.below(3))
        return RetentionPolicy.Candidate(
            id: CheckpointID(UInt64(number + 1)), createdNanoseconds: time,
            labels: random.chance(1, in: 5) ? [("keep", random.chance(1, in: 2) ? "yes" : "no")] : [],
            references: random.chance(1, in: 12) ? ["name\(number)"] : [])
    }
}

private func randomPolicy(_ random: inout SeededGenerator) -> RetentionPolicy {
    var policy = RetentionPolicy()
    policy.last = random.below(5)
    policy.withinNanoseconds = UInt64(random.below(100)) * hour
    for period in RetentionPeriod.allCases { policy.periods[period] = random.below(6) }
    if random.chance(1, in: 3) { policy.labels = [.init(key: "keep", value: random.chance(1, in: 2) ? "yes" : nil)] }
    return policy
}

@Suite struct RetentionTests {
    @Test func `what a policy keeps does not depend on the input's order, grows with its numbers, and is kept again`() throws {
        for seed in UInt64(1)...400 {
            var random = SeededGenerator(seed: seed)
            let (candidates, policy) = (randomCandidates(&random), randomPolicy(&random))
            let now = UInt64(1_711_000_000_000_000_000)
            let kept = policy.kept(of: candidates, now: now)
            let shuffled = policy.kept(of: candidates.shuffled(using: &random), now: now)
            #expect(kept.mapValues(Set.init) == shuffled.mapValues(Set.init), "seed \(seed)")
            var larger = policy
            switch random.below(3) {
            case 0: larger.last += 1
            case 1: larger.withinNanoseconds += 50 * hour
            default: larger.periods[RetentionPeriod.allCases[random.below(4)], default: 0] += 1
            }
            let keptMore = Set(larger.kept(of: candidates, now: now).keys)
            #expect(keptMore.isSuperset(of: kept.keys), "seed \(seed)")
            let left = candidates.filter { kept[$0.id] != nil }
            #expect(Set(policy.kept(of: left, now: now).keys) == Set(kept.keys), "seed \(seed)")
            for candidate in candidates where !candidate.references.isEmpty { #expect(kept[candidate.id] != nil, "seed \(seed)") }
            if let newest = candidates.map(\.createdNanoseconds).max(), policy.last > 0 {
                #expect(candidates.contains { $0.createdNanoseconds == newest && kept[$0.id] != nil }, "seed \(seed)")
            }
        }
    }

    @Test func `each period keeps the newest of as many periods as there are, and no more`() throws {
        for seed in UInt64(1)...200 {
            var random = SeededGenerator(seed: seed)
            let candidates = randomCandidates(&random)
            for period in RetentionPeriod.allCases {
                var policy = RetentionPolicy()
                policy.periods[period] = 1 + random.below(8)
                let kept = policy.kept(of: candidates, now: .max).filter { $0.value.contains(.period(period)) }
                let numbers = Set(candidates.map { period.number(at: $0.createdNanoseconds) }).sorted(by: >)
                let wanted = numbers.prefix(policy.periods[period] ?? 0)
                #expect(kept.count == wanted.count, "seed \(seed)")
                for number in wanted {
                    let newest = candidates.filter { period.number(at: $0.createdNanoseconds) == number }.map(\.createdNanoseconds).max()
                    #expect(candidates.contains { kept[$0.id] != nil && $0.createdNanoseconds == newest }, "seed \(seed)")
                }
            }
        }
    }

    @Test func `periods are those of the calendar`() throws {
        var calendar = Calendar(identifier: .iso8601)
        calendar.timeZone = try #require(TimeZone(secondsFromGMT: 0))
        var random = SeededGenerator(seed: 5)
        var previous: (date: DateComponents, numbers: [UInt64])?
        var time = 0.0
        while time < 4_102_444_800 {
            let date = calendar.dateComponents([.year, .month, .day, .hour, .weekOfYear, .yearForWeekOfYear], from: Date(timeIntervalSince1970: time))
            let numbers = RetentionPeriod.allCases.map { $0.number(at: UInt64(time) * 1_000_000_000) }
            if let (before, numbersBefore) = previous {
                let isSameDay = before.year == date.year && before.month == date.month && before.day == date.day
                let isSameMonth = before.year == date.year && before.month == date.month
                let isSameWeek = before.weekOfYear == date.weekOfYear && before.yearForWeekOfYear == date.yearForWeekOfYear
                let expected = [isSameDay && before.hour == date.hour, isSameDay, isSameWeek, isSameMonth]
                #expect(zip(numbers, numbersBefore).map { $0 == $1 } == expected, "\(date)")
            }
            previous = (date, numbers)
            time += Double(random.below(random.chance(1, in: 2) ? 5000 : 1_000_000))
        }
    }

    @Test func `pruning deletes just what it says it would`() async throws {
        try await onPlainThread {
            let scratch = try ScratchStore()
            let store = scratch.store
            for number in 0..<10 {
                let labels = number == 2 ? ["keep": "yes"] : [:]
                let writer = try store.begin(
                    "c\(number)", parent: number == 0 ? nil : "c\(number - 1)", options: WriterOptions(parallelism: 1, labels: labels))
                try writer.addRegion("ram", kind: .memory, byteLength: .kibibytes(64)).put(
                    page: PageIndex(number % 16), [UInt8](repeating: UInt8(number + 1), count: pageSize))
                try writer.commit()
            }
            try store.setReference("stable", to: "c4")
            var policy = RetentionPolicy()
            policy.last = 2
            policy.labels = [.init(key: "keep")]
            let dry = try store.prune(policy, isDryRun: true)
            #expect(try store.snapshot().names().count == 10)
            #expect(dry.deletion == nil)
            let result = try store.prune(policy)
            #expect(result.deletion?.deleted == ["c0", "c1", "c3", "c5", "c6", "c7"])
            #expect(dry.verdicts.filter(\.reasons.isEmpty).map(\.checkpoint.name) == result.deletion?.deleted)
            #expect(try store.snapshot().names() == ["c2", "c4", "c8", "c9"])
            #expect(result.verdicts[9].reasons.contains(.referenced("latest")))
            let report = try store.verify()
            #expect(report.isSound && report.lostPages == .zero && report.lostBytes == .zero)
            #expect(throws: StoreError.self) { try store.prune(RetentionPolicy()) }
        }
    }
}
