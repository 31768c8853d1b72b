// The benchmark runs, and says something of all six.

import FaultHarness
import Foundation
import Rollback
import Testing
import Units

@Suite(.serialized) struct BenchTests {
    @Test func `the benchmark measures all six strategies`() async throws {
        let rows = try await onPlainThread {
            var bench = RollbackBench()
            let isReal = ProcessInfo.processInfo.environment["CKSTORE_ROLLBACK_BENCH"] != nil
            bench.byteLength = .mebibytes(isReal ? 256 : 4)
            return try RollbackStrategyKind.allCases.map { try bench.run($0) }
        }
        #expect(rows.count == 6 && rows.allSatisfy { $0.firstWriteMicroseconds > 0 && $0.writtenPages == $0.pages / 100 })
        for row in rows { print("\(row)") }
    }
}
