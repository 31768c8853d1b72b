// Many processes on one store under many seeds.

import FaultHarness
import Media
import Testing

@Suite(.serialized) struct SimulationTests {
    @Test func `processes that write, delete and read together see one history`() async throws {
        let count = try await onPlainThread {
            keepFreedMemory()
            return try Simulator.explore("processes", seeds: 0..<UInt64(ProgrammeSize.scaled(400))) { seed in
                try ProcessScenario(seed: seed).run()
            }
        }
        #expect(count > 0)
    }
}
