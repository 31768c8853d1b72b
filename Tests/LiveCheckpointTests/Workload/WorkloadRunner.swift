// The workload machine at work: its processor on one thread, its disk's device on another, completing requests in an order by a seed.

import FaultHarness
import Glibc
import Threading
import VirtualDisks

final class WorkloadRunner: Sendable {
    let machine: WorkloadMachine
    private let image: HeldImage
    private let state = Lock((isStopping: false, isDeviceStopping: false, executed: 0))
    private let threads = Lock<(processor: PlainThread?, device: PlainThread?)>((nil, nil))

    init(_ machine: WorkloadMachine, _ image: HeldImage, seed: UInt64) {
        self.machine = machine
        self.image = image
        let sectorCount = image.byteLength.int / sectorSize
        let processor = PlainThread { [self] in runProcessor(seed, sectorCount) }
        let device = PlainThread { [self] in runDevice(seed) }
        threads.withLock { $0 = (processor, device) }
    }

    /// Instructions executed so far.
    var executed: Int { state.withLock { $0.executed } }

    /// Whether the machine does so many instructions more within ten seconds.
    func makesProgress(_ count: Int = 50) -> Bool {
        let goal = executed + count
        return state.waitFor(milliseconds: 10_000) { $0.executed >= goal ? () : nil } != nil
    }

    /// Ends the program where every slot has been consumed, and all requests are over.
    func stop() {
        state.withLock { $0.isStopping = true }
        threads.withLock { $0.processor }?.join()
        machine.disk.drain()
        state.withLock { $0.isDeviceStopping = true }
        threads.withLock { $0.device }?.join()
    }

    private func runProcessor(_ seed: UInt64, _ sectorCount: Int) {
        var round: UInt64 = 0
        while !state.withLock({ $0.isStopping }) {
            round += 1
            for instruction in WorkloadProgram.random(seed: seed &+ round, length: 20, layout: machine.layout, sectorCount: sectorCount) {
                while !machine.execute(instruction) { usleep(20) }
                state.withLock { $0.executed += 1 }
                state.wake()
            }
        }
    }

    private func runDevice(_ seed: UInt64) {
        var random = SeededGenerator(seed: seed, 0xdef1)
        while !state.withLock({ $0.isDeviceStopping }) {
            let held = image.held
            if held.isEmpty || random.chance(1, in: 3) { usleep(50) } else { image.complete(held[random.below(held.count)]) }
        }
    }
}
