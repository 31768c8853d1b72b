// Who decides what happens next: every possibility in turn, or a seed.

import FaultHarness

/// Answers questions with numbers. Used by one thread.
final class Choices: CustomStringConvertible {
    private var taken: [(choice: Int, count: Int)] = []
    private var position = 0
    private var random: SeededGenerator?
    private let seed: UInt64?

    /// Goes through all sequences of answers, one between two calls of `advance`.
    init() { seed = nil }

    init(seed: UInt64) {
        self.seed = seed
        random = SeededGenerator(seed: seed, 0xc401ce)
    }

    /// A number in `0..<count`.
    func choose(_ count: Int) -> Int {
        precondition(count > 0, "something to choose from")
        if random != nil { return random!.below(count) }
        if position == taken.count { taken.append((0, count)) }
        precondition(taken[position].count == count, "runs differ by nothing but their choices")
        defer { position += 1 }
        return taken[position].choice
    }

    /// Prepares the next sequence; false when there is none.
    func advance() -> Bool {
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

    var description: String { seed.map { "seed \($0)" } ?? "choices \(taken.map(\.choice))" }
}
