// The benchmark runs, and says something of all six.

import FaultHarness
import Foundation
import Media
import Rollback
import Testing
import Units

@Suite(.serialized) struct BenchTests {
    @Test func `the benchmark measures all six strategies, in memory and in a file`() async throws {
        let rows = try await onPlainThread {
            var bench = RollbackBench()
            let isReal = ProcessInfo.processInfo.environment["CKSTORE_ROLLBACK_BENCH"] != nil
            bench.byteLength = .mebibytes(isReal ? 256 : 4)
            let rows = try RollbackStrategyKind.allCases.map { try bench.run($0) }
            let path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-rollback-bench-\(UUID())").path
            defer { try? FileManager.default.removeItem(atPath: path) }
            bench.medium = try createMedium(try Locator(kind: .file, target: path))
            return rows + (try localKinds.map { try bench.run($0) })
        }
        #expect(rows.count == 11 && rows.allSatisfy { $0.firstWriteMicroseconds > 0 && $0.writtenPages == $0.pages / 100 })
        for row in rows { print("\(row)") }
    }
}
