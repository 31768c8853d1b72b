// Checkpoints of running machines through write protection: processors' writes wait until the old page is copied.

import CheckpointCore
import FaultHarness
import Glibc
import MachineMemory
import ReferenceMachine
import Testing
import Threading
import Units

/// Memory as it was when it was protected: pages are copied at their first write, the rest by a walk.
private final class MemoryImage: Sendable {
    private let memory: GuestMemory
    private let state: Lock<State>
    private struct State {
        var content: [UInt8]
        var copied: Set<PageIndex> = []
        var faults = 0
    }

    init(_ memory: GuestMemory) {
        self.memory = memory
        state = Lock(State(content: Array(repeating: 0, count: memory.byteLength.int)))
    }

    var content: [UInt8] { state.withLock { $0.content } }
    var faults: Int { state.withLock { $0.faults } }

    /// Answers a write.
    func preserve(_ page: PageIndex, _ trap: WriteTrap) {
        state.withLock { state in
            state.faults += 1
            copy(page, &state)
        }
        try! trap.release(page..<page + PageCount(1))
    }

    /// Copies what nobody has written.
    func copyRest(_ trap: WriteTrap) throws {
        for page in memory.allPages.lowerBound.int..<memory.allPages.upperBound.int {
            state.withLock { copy(PageIndex(page), &$0) }
            try trap.release(PageIndex(page)..<PageIndex(page + 1))
        }
    }

    private func copy(_ page: PageIndex, _ state: inout State) {
        guard state.copied.insert(page).inserted else { return }
        let range = page.int * pageSize..<(page.int + 1) * pageSize
        state.content.replaceSubrange(range, with: memory.content(range))
    }
}

extension ReferenceMachineTests {
    @Suite(.serialized) struct LiveCheckpointTests {
        @Test(arguments: GuestMemory.Sharing.allCases, [GuestMemory.Pages.base, .transparentHuge])
        func `a machine that runs on while it is checkpointed does not change its checkpoint, and neither changes the machine`(
            _ sharing: GuestMemory.Sharing, _ pages: GuestMemory.Pages
        ) async throws {
            let seed = printedSeed()
            try await onPlainThread {
                var random = SeededGenerator(seed: seed)
                var faults = 0
                for processors in sharing == .shared ? [1, 2, 3] : [2] {
                    let memory = try Workload.memory(sharing, pages)
                    let machine = try ReferenceMachine(
                        "live", memory: [memory], virtualCPUCount: processors, program: Workload.counter(5, 1000, seed))
                    defer { machine.close() }
                    let expected = Workload.model(processors: processors, 5, 1000, seed).output
                    machine.resume()
                    // The first checkpoint comes at once, so that there is one.
                    while try !machine.waitUntilHalted(milliseconds: 0) {
                        let (saved, printed, count) = try Self.checkpoint(machine, memory)
                        faults += count
                        let whole = try saved.restore(sharing, seed: seed) { restored, _, _ in
                            try restored.finish()
                            return printed + restored.serialOutput
                        }
                        let text = String(decoding: whole, as: UTF8.self)
                        try require(text == expected, "restored, it printed \(text), not \(expected)")
                        usleep(UInt32(random.below(15_000)))
                    }
                    try require(machine.printed == expected, "the machine printed \(machine.printed), not \(expected)")
                }
                print("\(faults) writes of processors were trapped")
                try require(faults >= 8, "only \(faults) writes of processors were trapped, nothing was shown")
            }
        }

        @Test func `a processor that waits for its page can be paused`() async throws {
            let seed = printedSeed()
            try await onPlainThread {
                let memory = try Workload.memory()
                let machine = try ReferenceMachine("waiting", memory: [memory], virtualCPUCount: 2, program: Workload.counter(3, 500, seed))
                defer { machine.close() }
                let waiting = Lock(Set<PageIndex>())
                // Nothing is released before both processors have waited, and a pause was asked for.
                let trap = try WriteTrap(memory) { page, _ in waiting.withLock { _ = $0.insert(page) } }
                defer { trap.close() }
                try trap.protect(memory.allPages)
                machine.resume()
                while waiting.withLock({ $0.isEmpty }) { usleep(100) }
                let releaser = PlainThread {
                    usleep(20_000)
                    try! trap.release(memory.allPages)
                }
                machine.pause()
                releaser?.join()
                try trap.release(memory.allPages)
                try machine.finish()
                let expected = Workload.model(processors: 2, 3, 500, seed).output
                try require(machine.printed == expected, "printed \(machine.printed), not \(expected)")
            }
        }

        /// A checkpoint while the machine runs, compared with a copy taken while it stood still; what it had printed; writes that waited.
        private static func checkpoint(
            _ machine: ReferenceMachine, _ memory: GuestMemory
        ) throws -> (SavedMachine, printed: [UInt8], faults: Int) {
            let image = MemoryImage(memory)
            let trap = try WriteTrap(memory) { image.preserve($0, $1) }
            defer { trap.close() }
            machine.pause()
            try trap.protect(memory.allPages)
            var saved = try SavedMachine(machine, memory)
            let printed = machine.serialOutput
            machine.resume()
            // Some writes have to wait for their pages, or nothing is shown.
            while image.faults < 8, try !machine.waitUntilHalted(milliseconds: 1) {}
            try image.copyRest(trap)
            try require(image.content == saved.memory, "the checkpoint is not the memory at the pause")
            saved.memory = image.content
            return (saved, printed, image.faults)
        }
    }
}
