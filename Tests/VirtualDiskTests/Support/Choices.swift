// Who decides what happens next: every possibility in turn, or chance.

import FaultHarness

protocol Chooser {
    /// A number in `0..<count`.
    mutating func choose(_ count: Int) -> Int
}

/// Goes through all sequences of choices, one in each run.
struct EveryChoice: Chooser, CustomStringConvertible {
    private var taken: [(choice: Int, count: Int)] = []
    private var position = 0

    mutating func choose(_ count: Int) -> Int {
        precondition(count > 0, "something to choose from")
        if position == taken.count { taken.append((0, count)) }
        precondition(taken[position].count == count, "runs differ by nothing but their choices")
        defer { position += 1 }
        return taken[position].choice
    }

    /// Prepares the next run; false when there is none.
    mutating func advance() -> Bool {
        taken.removeLast(taken.count - position)
        position = 0
        while let last = taken.last {
            if last.choice + 1 < last.count {
                taken[taken.count - 1].choice += 1
                return true
            }
            taken.removeLast()
        }
        return false
    }

    var description: String { "\(taken.map(\.choice))" }
}

/// By a seed.
struct RandomChoice: Chooser {
    var generator: SeededGenerator
    init(seed: UInt64) { generator = SeededGenerator(seed: seed) }
    mutating func choose(_ count: Int) -> Int { generator.below(count) }
}
