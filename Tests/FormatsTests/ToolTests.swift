// What is written about the format agrees with itself: the sample stores, the structures, the worked example.

import FaultHarness
import Testing

@Suite struct ToolTests {
    @Test func `the reader in Python says of each sample store what is expected`() async throws {
        let output = try await onPlainThread { try Python.output("golden/check.py") }
        let count = try GoldenCase.names().count
        #expect(output.contains("\(count) of \(count) stores as expected"))
    }

    @Test func `the structures for Kaitai Struct fit the sample stores`() async throws {
        let output = try await onPlainThread { try Python.output("tools/check_ksy.py") }
        #expect(output.contains("chain: ") && output.contains("engine-chain: ") && output.contains("forwarding: "))
    }

    @Test func `what a deletion finds dead as the format says it is what no checkpoint names`() async throws {
        let output = try await onPlainThread { try Python.output("tools/check_reclaim.py", "5") }
        #expect(output.contains("5 histories"))
    }

    @Test func `the worked example of the format's description is exact`() async throws {
        let output = try await onPlainThread { try Python.output("tools/worked_example.py", "--check") }
        #expect(output.contains("section 11 is right"))
    }
}
