// How much is tried by chance, and from which seed.

import Foundation

enum Programme {
    /// CKSTORE_LONG_TESTS=1: thirty times as much.
    static func runs(_ count: Int) -> Int { ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1" ? 30 * count : count }

    /// A seed that is printed. CKSTORE_TEST_SEED replays one.
    static func seed() -> UInt64 {
        let seed = ProcessInfo.processInfo.environment["CKSTORE_TEST_SEED"].flatMap { UInt64($0) } ?? UInt64.random(in: 0...UInt64.max)
        print("CKSTORE_TEST_SEED=\(seed)")
        return seed
    }
}
