// The machine's disks as the guest sees them: registers, requests, status words in memory.
//
// Each processor has a set of registers of its own for every disk, so that guests need no lock: first sector, address of the buffer,
// count of sectors, address of the status word; writing the command register issues the request. The status word becomes 1 or 2 when the
// request is done: succeeded, failed.
//
// Invariants:
// - Data goes through the memory's device mapping, like DMA: it does not trap. The status word is stored like a processor's write: it
//   traps, so that whoever checkpoints memory sees it.
// - A request is pending from its issue until its status word is stored.
// - While the machine is paused no status word is stored. Results that come meanwhile are recorded with their requests, which stay
//   pending; the guest is told of them after `resume`. So memory and the list of pending requests agree in every checkpoint.
// - A pending request of a state that is restored has been carried out: memory and disks of the checkpoint have its results. The guest
//   is told of its recorded status, of success where none was recorded; it is never executed again [system A, "Saved device state"].

import CheckpointCore
import Threading
import Units

/// Issues the guest's requests and tells it of their completion. Thread-safe.
final class DiskController: Sendable {
    /// A request beyond it fails at once.
    static let maximumPendingCount = 4096
    /// Sectors of one request.
    static let maximumSectorCount: UInt32 = 4096

    private let space: GuestAddressSpace
    private let disks: [any DMADisk]
    private let state: Lock<State>

    private struct State {
        var registers: [[DiskRegisters]]
        var nextRequest: RequestNumber
        var pending: [PendingRequest]
        var isPaused = true
        var isClosed = false
        /// Status words being stored at this moment.
        var storing = 0
        /// Requests that were pending in the state that was saved last, and what became of them.
        var saved: [RequestNumber: RequestStatus] = [:]
    }

    init(_ space: GuestAddressSpace, _ disks: [any DMADisk], _ saved: DeviceState) {
        self.space = space
        self.disks = disks
        // Whoever kept the state has waited for its requests.
        let pending = saved.pending.map { request in
            var request = request
            if request.status == .outstanding { request.status = .succeeded }
            return request
        }
        state = Lock(State(registers: saved.diskRegisters, nextRequest: saved.nextRequest, pending: pending))
    }

    // MARK: Pausing

    /// From its return on, no status word is stored until `resume`.
    func pause() {
        state.withLock { $0.isPaused = true }
        state.waitFor { $0.storing == 0 ? () : nil }
    }

    /// Tells the guest of what was completed during the pause.
    func resume() {
        let completed = state.withLock { state in
            state.isPaused = false
            let completed = state.pending.filter { $0.status != .outstanding }
            state.storing += completed.count
            return completed
        }
        for request in completed { tellGuest(request) }
    }

    /// Fills in the registers and pending requests of a paused machine, and remembers what becomes of the latter.
    func save(into devices: inout DeviceState) {
        state.withLock { state in
            devices.diskRegisters = state.registers
            devices.nextRequest = state.nextRequest
            devices.pending = state.pending
            state.saved = Dictionary(uniqueKeysWithValues: state.pending.map { ($0.number, $0.status) })
        }
    }

    /// What became of requests that were pending in the state that was saved last.
    var outcomes: [RequestNumber: RequestStatus] { state.withLock { $0.saved } }

    /// From now on nobody's memory is changed: completions that still come are dropped.
    func close() {
        state.withLock { $0.isClosed = true }
        state.waitFor { $0.storing == 0 ? () : nil }
    }

    // MARK: Ports

    private static let firstPort: UInt16 = 0x600
    private static let portsPerDisk: UInt16 = 0x20

    /// Takes a number from a processor; false when the port is not one of this device. Returns when a request is issued.
    func write(_ value: UInt32, to port: UInt16, by processor: Int) -> Bool {
        guard let (disk, register) = decode(port) else { return false }
        guard register != .command else {
            issue(value, disk, by: processor)
            return true
        }
        state.withLock { $0.registers[disk][processor][register] = value }
        return true
    }

    /// A number for a processor; nil when the port is not one of this device. The command register reads as the number of pending requests.
    func read(_ port: UInt16, by processor: Int) -> UInt32? {
        guard let (disk, register) = decode(port) else { return nil }
        return state.withLock { state in
            register == .command ? UInt32(state.pending.count { $0.disk == disk }) : state.registers[disk][processor][register]
        }
    }

    private func decode(_ port: UInt16) -> (disk: Int, register: DiskRegister)? {
        guard port >= Self.firstPort, let register = DiskRegister(rawValue: (port - Self.firstPort) % Self.portsPerDisk) else { return nil }
        let disk = Int((port - Self.firstPort) / Self.portsPerDisk)
        return disk < disks.count ? (disk, register) : nil
    }

    // MARK: Requests

    private func issue(_ command: UInt32, _ disk: Int, by processor: Int) {
        guard let operation = DMAOperation(rawValue: command) else { return }
        let request: PendingRequest? = state.withLock { state in
            let registers = state.registers[disk][processor]
            var request = PendingRequest(number: state.nextRequest, disk: UInt32(disk), operation: operation, registers: registers)
            // A request whose end can't be told is not begun.
            guard space.hasWord(at: request.statusAddress), state.pending.count < Self.maximumPendingCount else { return nil }
            state.nextRequest = RequestNumber(state.nextRequest.rawValue + 1)
            if !isValid(request) {
                // A wrong request fails as one that the disk could not carry out.
                request.status = .failed
                if !state.isPaused { state.storing += 1 }
            }
            state.pending.append(request)
            return request.status == .failed && state.isPaused ? nil : request
        }
        guard let request else { return }
        guard request.status == .outstanding else { return tellGuest(request) }
        disks[disk].submit(operation, at: request.diskOffset, buffer(of: request)) { [self] result in
            complete(request.number, result.isSuccess ? .succeeded : .failed)
        }
    }

    private func isValid(_ request: PendingRequest) -> Bool {
        guard request.operation != .flush else { return true }
        let registers = request.registers
        let byteLength = disks[Int(request.disk)].byteLength
        guard (1...Self.maximumSectorCount).contains(registers.sectorCount), UInt64(registers.bufferAddress) % sectorSize.rawValue == 0,
            request.diskOffset <= byteLength, request.byteCount <= byteLength - request.diskOffset
        else { return false }
        return buffer(of: request) != nil
    }

    private func buffer(of request: PendingRequest) -> DMABuffer? {
        guard request.operation != .flush else { return nil }
        return space.buffer(at: GuestAddress(UInt64(request.registers.bufferAddress)), request.byteCount)
    }

    /// A disk has carried out a request.
    private func complete(_ number: RequestNumber, _ status: RequestStatus) {
        let request: PendingRequest? = state.withLock { state in
            guard !state.isClosed else { return nil }
            guard let index = state.pending.firstIndex(where: { $0.number == number && $0.status == .outstanding }) else {
                preconditionFailure("a disk completes each request once")
            }
            state.pending[index].status = status
            if state.saved[number] != nil { state.saved[number] = status }
            guard !state.isPaused else { return nil }
            state.storing += 1
            return state.pending[index]
        }
        if let request { tellGuest(request) }
    }

    /// Stores the status word; the store may wait for a page, so that no lock is held meanwhile.
    private func tellGuest(_ request: PendingRequest) {
        space.store(request.status.rawValue, at: request.statusAddress)
        state.withLock { state in
            state.pending.removeAll { $0.number == request.number }
            state.storing -= 1
        }
        state.wake()
    }
}

/// A disk's registers, by the offsets of their ports.
private enum DiskRegister: UInt16 {
    case sector = 0x00
    case bufferAddress = 0x04
    case sectorCount = 0x08
    case statusAddress = 0x0c
    case command = 0x10
}

extension DiskRegisters {
    /// One that holds a number; the command register does not.
    fileprivate subscript(_ register: DiskRegister) -> UInt32 {
        get {
            switch register {
            case .sector: sector
            case .bufferAddress: bufferAddress
            case .sectorCount: sectorCount
            case .statusAddress: statusAddress
            case .command: preconditionFailure("the command register holds nothing")
            }
        }
        set {
            switch register {
            case .sector: sector = newValue
            case .bufferAddress: bufferAddress = newValue
            case .sectorCount: sectorCount = newValue
            case .statusAddress: statusAddress = newValue
            case .command: preconditionFailure("the command register holds nothing")
            }
        }
    }
}

extension PendingRequest {
    /// Where it begins on the disk.
    fileprivate var diskOffset: ByteCount {
        operation == .flush ? .zero : ByteCount(UInt64(registers.sector) * sectorSize.rawValue)
    }
    fileprivate var byteCount: ByteCount { ByteCount(UInt64(registers.sectorCount) * sectorSize.rawValue) }
}

extension Result {
    fileprivate var isSuccess: Bool {
        if case .success = self { true } else { false }
    }
}
