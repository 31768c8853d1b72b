// The threads that run a machine's virtual processors, stopped and let go together.
//
// Invariants:
// - Each processor is run by one thread, from the machine's first resume until `close`.
// - When `pause` has returned, no processor is in the guest, and each has completed its port input and output.
// - The mark that stops a processor is set and taken away under the lock, and before the kick: no kick is lost.

import CKVM
import CLinux
import CheckpointCore
import Glibc
import Threading

/// A machine's processors at work. Thread-safe.
final class ProcessorThreads: Sendable {
    private let processors: [KernelProcessor]
    private let devices: MachineDevices
    private let name: String
    private let state: Lock<State>
    private let threads = Lock<[PlainThread]>([])

    private enum Phase { case standing, running, halted, failed }
    private struct State {
        var phases: [Phase]
        /// The kernel's numbers of the threads; valid while their processors run.
        var threads: [pid_t]
        var isPaused = true
        var isClosed = false
        var failure: EngineError?
    }

    /// Starts the threads; the processors stand still until `resume`.
    ///
    /// - Parameter isHalted: for each processor, whether it had halted before.
    /// - Throws: `.noMemory` when there are no threads to be had.
    init(_ processors: [KernelProcessor], isHalted: [Bool], _ devices: MachineDevices, name: String) throws(EngineError) {
        self.processors = processors
        self.devices = devices
        self.name = name
        state = Lock(State(phases: isHalted.map { $0 ? .halted : .standing }, threads: Array(repeating: 0, count: processors.count)))
        for index in processors.indices {
            guard let thread = PlainThread({ self.serve(index) }) else {
                close()
                throw EngineError(.noMemory, "can't start a thread for processor \(index)", place: name)
            }
            threads.withLock { $0.append(thread) }
        }
    }

    /// For each processor, whether it has executed HLT.
    var isHalted: [Bool] { state.withLock { $0.phases.map { $0 == .halted } } }
    var isPaused: Bool { state.withLock { $0.isPaused } }
    var isClosed: Bool { state.withLock { $0.isClosed } }
    /// Why a processor can't go on, if so.
    var failure: EngineError? { state.withLock { $0.failure } }

    func pause() {
        state.withLock { state in
            precondition(!state.isPaused && !state.isClosed, "a running machine is paused")
            state.isPaused = true
            kick(state)
        }
        state.waitFor { $0.phases.contains(.running) ? nil : () }
    }

    func resume() {
        state.withLock { state in
            precondition(state.isPaused && !state.isClosed, "a paused machine is resumed")
            state.isPaused = false
        }
        state.wake()
    }

    /// True when every processor has halted, false when that takes longer. Throws what a processor failed with.
    func waitUntilHalted(milliseconds: Int) throws(EngineError) -> Bool {
        let result: Bool? = try state.waitFor(milliseconds: milliseconds) { (state) throws(EngineError) -> Bool? in
            if let failure = state.failure { throw failure }
            return state.phases.allSatisfy { $0 == .halted } ? true : nil
        }
        return result ?? false
    }

    /// Stops the processors for ever and ends the threads. Harmless when that was done before.
    func close() {
        state.withLock { state in
            state.isClosed = true
            kick(state)
        }
        state.wake()
        let ending = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in ending { thread.join() }
    }

    private func kick(_ state: State) {
        for (index, phase) in state.phases.enumerated() where phase == .running {
            processors[index].setStop(true)
            let result = ck_processor_kick(state.threads[index])
            precondition(result == 0, "a thread that runs a processor can be kicked: \(result)")
        }
    }

    // MARK: A processor's thread

    private func serve(_ index: Int) {
        do throws(EngineError) {
            try processors[index].adoptThread()
            state.withLock { $0.threads[index] = ck_thread_id() }
            while enter(index) {
                if try runUntilKicked(index) { leave(index, .halted) }
            }
        } catch {
            state.withLock { $0.failure = $0.failure ?? error }
            leave(index, .failed)
        }
    }

    /// Waits until the processor may run; false when it never will again.
    private func enter(_ index: Int) -> Bool {
        state.waitFor { state in
            if state.phases[index] == .running { state.phases[index] = .standing }
            // Whoever paused waits for this.
            self.state.wake()
            if state.isClosed || state.phases[index] != .standing { return false }
            if state.isPaused { return nil }
            state.phases[index] = .running
            processors[index].setStop(false)
            return true
        }
    }

    private func leave(_ index: Int, _ phase: Phase) {
        state.withLock { $0.phases[index] = phase }
        state.wake()
    }

    /// True when the guest has halted, false when somebody wants the processor to stop.
    private func runUntilKicked(_ index: Int) throws(EngineError) -> Bool {
        while true {
            switch try processors[index].run() {
            case .kicked: return false
            case .halted: return true
            case .output(let port, let size, let bytes): unsafe devices.output(bytes, size: size, to: port, by: index)
            case .input(let port, let size, let bytes): unsafe devices.input(bytes, size: size, from: port, by: index)
            case .stopped(let reason, let detail):
                throw EngineError(
                    .ioFailed, "processor \(index) can't go on: the kernel's exit reason \(reason), detail 0x\(String(detail, radix: 16))",
                    remedy: "The guest's program is at fault, or the kernel can't run it.", place: name)
            }
        }
    }
}
