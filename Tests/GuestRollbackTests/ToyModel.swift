// The model: the same program with memory that is an array and devices that are done at once.
//
// Invariant: what a guest does under any schedule, with any rollbacks, ends as this does.

import GuestRollback
import Units

final class ToyModel: ToyWorld {
    var memory: [UInt8]
    var disks: [[UInt8]]
    /// Writes in the order of their issue: who, where, what.
    var writes: [TracedWrite] = []
    var reads: [RequestID] = []
    private var readOnly: Set<PageIndex> = []
    private var finished: [RequestCompletion] = []

    init(memory: Int, disks: [[UInt8]]) {
        self.memory = [UInt8](repeating: 0, count: memory)
        self.disks = disks
    }

    func store(_ value: UInt64, at address: GuestAddress) -> Bool {
        if readOnly.contains(address.page) { return false }
        for index in 0..<8 { memory[address.int + index] = UInt8(truncatingIfNeeded: value >> (8 * index)) }
        return true
    }

    func load(_ address: GuestAddress) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(memory[address.int + $1]) << (8 * $1) } }

    func setReadOnly(_ isReadOnly: Bool, _ page: PageIndex) {
        if isReadOnly { readOnly.insert(page) } else { readOnly.remove(page) }
    }

    func submit(_ request: GuestRequest) {
        let onDisk = request.offset.int..<request.offset.int + request.byteLength.int
        let inMemory = request.address.int..<request.address.int + request.byteLength.int
        switch request.operation {
        case .read:
            memory.replaceSubrange(inMemory, with: disks[request.device.int][onDisk])
            reads.append(request.id)
        case .write:
            disks[request.device.int].replaceSubrange(onDisk, with: memory[inMemory])
            writes.append(TracedWrite(id: request.id, offset: request.offset, bytes: Array(memory[inMemory])))
        case .flush: break
        }
        finished.append(RequestCompletion(request: request.id, status: .done))
    }

    /// Runs machines one after the other to their ends.
    func run(_ machines: [ToyMachine]) throws -> [ToyMachine] {
        try machines.map { machine in
            var machine = machine
            while try machine.run(in: self) != .halted {
                for completion in finished { machine.complete(completion) }
                finished = []
            }
            return machine
        }
    }
}

/// One write as a device saw it.
struct TracedWrite: Hashable {
    var id: RequestID
    var offset: DeviceOffset
    var bytes: [UInt8]
}
