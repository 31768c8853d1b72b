// A machine with one processor and a disk, whose every step is taken by the test: protected memory, asynchronous requests, and beside it the
// model that says what should come of it.
//
// Invariants:
// - Instructions are executed one at a time, each with the model's: a stop falls between two of them.
// - Completions change nothing but the state of their slot: what a device tells a machine that stands still waits in the device.

import CheckpointCore
import LiveCheckpoint
import MachineMemory
import Threading
import Units
import VirtualDisks

final class WorkloadMachine: Machine {
    struct Processor {
        var counter: UInt64 = 0
        var accumulator: UInt64
        var isRunning = true
        var model: WorkloadModel
        /// The model at the last stop: what the checkpoint has to be.
        var atStop: WorkloadModel?
    }

    struct Device {
        var slots: [Registers.Slot]
        var lengths: [UInt16]
        /// The number of the request that each slot had last.
        var requests: [Int]
        var requestCount = 0
        /// What became of requests, by their number.
        var outcomes: [Int: Registers.Slot] = [:]
        /// Slots whose requests were under way at the last stop, with the requests' numbers.
        var atStop: [Int: Int] = [:]
    }

    let name = "workload"
    let identity = MachineIdentity(hypervisor: "ckstore-test", version: "1", machineType: "workload", architecture: "none")
    let virtualCPUCount = 1
    let physicalRanges: [MachineRecord.PhysicalRange] = []
    let layout: WorkloadLayout
    let ram: GuestMemory
    let disk: VirtualDisk
    var memory: [GuestMemory] { [ram] }
    var disks: [VirtualDisk] { [disk] }
    let processor: Lock<Processor>
    let device: Lock<Device>
    /// What `pause` and `deviceState` throw, if anything.
    let refusal = Lock<(pause: EngineError?, state: EngineError?)>((nil, nil))

    /// A machine whose memory is filled, or whose memory and disk have been brought back, with the registers that belong to them.
    init(_ ram: GuestMemory, _ disk: VirtualDisk, diskContent: [UInt8], registers: Registers? = nil) {
        layout = WorkloadLayout(pageCount: ram.pageCount.int)
        self.ram = ram
        self.disk = disk
        let registers = registers ?? Registers(slotCount: layout.slotCount)
        let model = WorkloadModel(memory: unsafe [UInt8](ram.bytes), disk: diskContent, registers: registers)
        processor = Lock(Processor(counter: registers.counter, accumulator: registers.accumulator, model: model))
        device = Lock(
            Device(slots: registers.slots, lengths: registers.lengths, requests: [Int](repeating: 0, count: layout.slotCount)))
    }

    var registers: Registers {
        let (counter, accumulator) = processor.withLock { ($0.counter, $0.accumulator) }
        return device.withLock { device in
            var result = Registers(slotCount: layout.slotCount)
            (result.counter, result.accumulator, result.slots, result.lengths) = (counter, accumulator, device.slots, device.lengths)
            return result
        }
    }
    var model: WorkloadModel { processor.withLock { $0.model } }
    /// What the last checkpoint has to be.
    var modelAtStop: WorkloadModel? { processor.withLock { $0.atStop } }
    func slot(_ slot: Int) -> Registers.Slot { device.withLock { $0.slots[slot] } }
    var deliveredSlots: [Int] { device.withLock { device in device.slots.indices.filter { device.slots[$0] == .done || device.slots[$0] == .failed } } }

    // MARK: The processor

    func canExecute(_ instruction: Instruction) -> Bool {
        guard processor.withLock({ $0.isRunning }) else { return false }
        switch instruction {
        case .touch, .touchAll: return true
        case .submit(let slot, _, _): return self.slot(slot) == .idle
        case .consume(let slot): return self.slot(slot) == .done || self.slot(slot) == .failed
        }
    }

    /// Executes an instruction, here and in the model; false when the machine stands still, or the instruction has to wait.
    @discardableResult
    func execute(_ instruction: Instruction) -> Bool {
        processor.withLock { processor in
            guard processor.isRunning else { return false }
            switch instruction {
            case .touch(let page): store(processor.accumulator ^ processor.counter, at: layout.scratch(page, processor.counter))
            case .touchAll:
                for page in layout.pagesWithBuffers { store(processor.accumulator ^ UInt64(page), at: layout.scratch(page, processor.counter)) }
            case .submit(let slot, let operation, let sectors):
                guard self.slot(slot) == .idle else { return false }
                submit(slot, operation, sectors)
            case .consume(let slot):
                guard self.slot(slot) == .done || self.slot(slot) == .failed else { return false }
                consume(slot, &processor)
            }
            processor.counter += 1
            processor.model.execute(instruction, layout)
            return true
        }
    }

    private func store(_ value: UInt64, at start: Int) { unsafe ram.bytes.storeBytes(of: value.littleEndian, toByteOffset: start, as: UInt64.self) }

    private func submit(_ slot: Int, _ operation: DiskOperation, _ sectors: Range<Int>) {
        let count = sectors.count * sectorSize
        let number = device.withLock { device in
            device.requestCount += 1
            device.slots[slot] = .underWay
            device.lengths[slot] = UInt16(count)
            device.requests[slot] = device.requestCount
            return device.requestCount
        }
        let buffer = GuestBuffer(ram, offset: ByteCount(layout.buffer(slot).lowerBound), byteCount: ByteCount(max(count, 1)))
        disk.submit(
            DiskRequest(operation, at: DiskOffset(sectors.lowerBound * sectorSize), operation == .flush ? nil : buffer) { [device] result in
                device.withLock { device in
                    let outcome: Registers.Slot = if case .success = result { .done } else { .failed }
                    device.outcomes[number] = outcome
                    device.slots[slot] = outcome
                }
                device.wake()
            })
    }

    private func consume(_ slot: Int, _ processor: inout Processor) {
        var registers = Registers(slotCount: 0)
        registers.accumulator = processor.accumulator
        let buffer = layout.buffer(slot).prefix(Int(device.withLock { $0.lengths[slot] }))
        unsafe registers.mix(UnsafeRawBufferPointer(rebasing: UnsafeRawBufferPointer(ram.bytes)[buffer]).reduce(0) { $0 &* 31 &+ UInt64($1) })
        processor.accumulator = registers.accumulator
        if !buffer.isEmpty { store(registers.accumulator, at: buffer.lowerBound) }
        device.withLock { $0.slots[slot] = .idle }
    }

    // MARK: The machine as the checkpointer sees it

    func pause() throws(EngineError) {
        if let error = refusal.withLock({ $0.pause }) { throw error }
        processor.withLock { processor in
            processor.isRunning = false
            processor.atStop = processor.model
        }
    }

    func resume() throws(EngineError) { processor.withLock { $0.isRunning = true } }

    func deviceState() throws(EngineError) -> [UInt8] {
        if let error = refusal.withLock({ $0.state }) { throw error }
        let registers = registers
        device.withLock { device in
            device.atStop = [:]
            for slot in device.slots.indices where registers.slots[slot] == .underWay { device.atStop[slot] = device.requests[slot] }
            // What ended before is in the registers.
            device.outcomes = device.outcomes.filter { device.atStop.values.contains($0.key) }
        }
        return registers.encoded
    }

    func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8] {
        guard var registers = Registers(decoding: state) else { preconditionFailure("a state of this machine") }
        device.withLock { device in
            for (slot, number) in device.atStop {
                guard let outcome = device.outcomes[number] else { preconditionFailure("all requests have ended") }
                registers.slots[slot] = outcome
            }
        }
        return registers.encoded
    }

    // MARK: Comparing

    /// What differs from the model now that nothing is under way; nil: nothing. `diskContent`: what the machine would read.
    func difference(diskContent: [UInt8]) -> String? {
        let model = model
        if let difference = WorkloadModel.difference(unsafe [UInt8](ram.bytes), model.memory) { return "the ongoing memory: \(difference)" }
        if let difference = WorkloadModel.difference(diskContent, model.disk) { return "the ongoing disk: \(difference)" }
        return registers == model.registers ? nil : "the ongoing registers: \(registers), not \(model.registers)"
    }
}
