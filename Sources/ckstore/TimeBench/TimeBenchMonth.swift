// A month of hourly checkpoints, of which the last day's and one of each day before are kept.
//
// Invariant: the work of the machine depends on the hour alone, so that two runs make the same checkpoints.

import CheckpointStore
import StoreFormat
import Units

/// Which checkpoints stay: the last so many, and the last one of each of so many days.
struct TimeBenchRetention {
    var last = 24
    var daily = 30

    /// The hours in `made`, ascending, whose checkpoints are no longer needed.
    func doomed(_ made: [Int]) -> [Int] {
        var kept = Set(made.suffix(last))
        var days = Set<Int>()
        for hour in made.reversed() where days.count < daily || days.contains(hour / 24) {
            if days.insert(hour / 24).inserted { kept.insert(hour) }
        }
        return made.filter { !kept.contains($0) }
    }
}

/// Lives through days of a machine's work. Confined to one thread.
struct TimeBenchMonth {
    let store: CheckpointStore
    let image: BenchImage
    let days: Int
    let threads: Int
    let say: (String) -> Void
    private let retention = TimeBenchRetention()
    private var pages: TimeBenchPages
    private var random = BenchRandom(seed: 41)

    /// Of all pages: what an hour of the day and of the night writes, and what the nightly job rewrites in one piece.
    private static let (byDay, byNight, byJob) = (0.02, 0.002, 0.1)
    private static let workingHours = 8..<20
    private static let jobHour = 3
    /// Of the pages, those that are hot, and of the writes, those that go to them.
    private static let (hotPages, hotWrites) = (0.1, 0.8)

    init(
        store: CheckpointStore, image: BenchImage, units: BenchUnits, days: Int, threads: Int, say: @escaping (String) -> Void
    ) {
        self.store = store
        self.image = image
        self.days = days
        self.threads = threads
        self.say = say
        pages = TimeBenchPages(image, units, seed: 37)
    }

    /// Saves every hour, deletes what retention does not keep, compacts once a day.
    mutating func live() throws -> TimeBenchReport.Month {
        let work = BenchWork(store: store, image: image, threads: threads)
        var made: [Int] = []
        var (saves, deletions, compactions): ([Double], [Double], [Double]) = ([], [], [])
        var movedBytes = ByteCount.zero
        for hour in 0..<days * 24 {
            if hour % 24 == 0 { say("day \(hour / 24 + 1) of \(days)") }
            let changed = change(hour)
            let parent = made.last.map(Self.name)
            saves.append(
                try work.save(Self.name(hour), parent: parent, parent == nil ? .memory(isStable: true) : .pages(changed)))
            made.append(hour)
            if hour % 24 == 23 {
                compactions.append(
                    try seconds {
                        let report = try store.compact()
                        if let obstacle = report.obstacle { throw obstacle }
                        movedBytes += report.movedBytes
                    })
            }
            let doomed = retention.doomed(made)
            guard !doomed.isEmpty else { continue }
            made.removeAll { doomed.contains($0) }
            deletions.append(
                try seconds { if let obstacle = try store.delete(doomed.map(Self.name)).obstacle { throw obstacle } })
        }
        return TimeBenchReport.Month(
            days: days, kept: made.count, saves: .init(saves), deletions: .init(deletions), compactions: .init(compactions),
            movedBytes: movedBytes.int,
            space: .init(try store.info()))
    }

    private static func name(_ hour: Int) -> String { "hour-\(hour)" }

    /// One hour of work: pages that are hot by half of them each day, others here and there, and at night a job that
    /// goes through a piece of memory.
    private mutating func change(_ hour: Int) -> [Int] {
        let all = pages.all
        let share = Self.workingHours.contains(hour % 24) ? Self.byDay : Self.byNight
        let hot = max(1, Int(Double(all.count) * Self.hotPages))
        // What is hot moves on by half its size every day.
        let start = hour / 24 * hot / 2
        var chosen = Set<Int>()
        for _ in 0..<max(1, Int(Double(all.count) * share)) {
            let isHot = Double.random(in: 0..<1, using: &random) < Self.hotWrites
            let index = isHot ? start + Int.random(in: 0..<hot, using: &random) : Int.random(in: 0..<all.count, using: &random)
            chosen.insert(all[index % all.count])
        }
        if hour % 24 == Self.jobHour {
            let length = Int(Double(all.count) * Self.byJob)
            let start = Int.random(in: 0..<all.count, using: &random)
            for index in start..<start + length { chosen.insert(all[index % all.count]) }
        }
        let result = chosen.sorted()
        pages.change(result)
        return result
    }
}
