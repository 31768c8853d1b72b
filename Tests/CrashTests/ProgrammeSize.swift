// How much of the programme is run.
//
// Invariant: what is tried grows with the size and never differs in kind.

import Foundation

/// The sizes of the crash and fault programme.
///
/// | `CKSTORE_LONG_TESTS=1` | optimised builds | debug builds, or `CKSTORE_QUICK_TESTS=1` |
/// |---|---|---|
/// | 10^6 crash images, 4 * 10^5 flips, 60 000 damaged blocks, 8 000 seeds, 2 000 kills: hours | 10^5, 20 000, 3 000, 400, 100: minutes | a thirtieth of that, workloads of up to two operations |
enum ProgrammeSize {
    static let isLong = ProcessInfo.processInfo.environment["CKSTORE_LONG_TESTS"] == "1"
    static let isQuick: Bool = {
        #if DEBUG
            return !isLong
        #else
            return !isLong && ProcessInfo.processInfo.environment["CKSTORE_QUICK_TESTS"] == "1"
        #endif
    }()

    /// How many of something are tried where an ordinary run tries `count`.
    static func scaled(_ count: Int) -> Int { isLong ? count * 20 : isQuick ? max(1, count / 30) : count }

    /// The workloads of which every crash is tried.
    static let sequences: [[StoreOperation]] = (1...(isQuick ? 2 : 3)).flatMap { CrashTests.sequences(of: $0) }

    /// Those with something from another store, or with pruning, of which every crash is tried: of three operations, some.
    static let receiving: [[StoreOperation]] = {
        let operations = StoreOperation.received
        let single = CrashTests.sequences(of: 1, from: operations)
        if isQuick { return single }
        return single + CrashTests.sequences(of: 2, from: operations)
            + CrashTests.sequences(of: 3, from: operations).enumerated().filter { isLong || $0.offset % 48 == 5 }.map(\.element)
    }()

    /// Of how many crash images one is crashed again while it recovers.
    static let recoveryPeriod: UInt64 = isLong ? 60 : 600
}
