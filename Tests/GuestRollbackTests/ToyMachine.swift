// A guest that does the same whenever it is run again: a seeded program over memory, devices and read-only pages.
//
// Invariants:
// - What it does is a function of its registers, its memory and what it has read; never of time. It looks at what a read brought only when it has
//   waited for the read.
// - Its registers are all that it has outside its memory, and the random numbers come out of them: put back, they repeat the program.

import FaultHarness
import GuestRollback
import Units

/// What a toy machine works on: a real guest, or the model of one.
protocol ToyWorld: AnyObject {
    /// False: the guest was told that the page is read-only.
    func store(_ value: UInt64, at address: GuestAddress) throws -> Bool
    func load(_ address: GuestAddress) throws -> UInt64
    func setReadOnly(_ isReadOnly: Bool, _ page: PageIndex) throws
    func submit(_ request: GuestRequest) throws
}

/// One request that a machine waits for.
struct ToyPending: Equatable {
    var id: UInt64
    /// The slot that it fills; nil for writes and flushes.
    var slot: Int?
    var byteLength: Int
}

/// What the machine does in one step.
enum ToyOperation: Equatable {
    case store(word: Int)
    case load(word: Int)
    case read(device: Int, sector: Int, sectors: Int, slot: Int)
    case write(device: Int, sector: Int, sectors: Int, page: Int)
    case flush(device: Int)
    /// Waits for the oldest request.
    case wait
    case mark(readOnly: Bool)
    case storeMarked
}

/// Where a machine's things lie.
struct ToyLayout: Equatable {
    var index: ProcessorIndex = ProcessorIndex(UInt64(0))
    var firstPage = 0
    var workPages = 4
    var slots = 3
    var devices = 1
    var firstSector = 0
    var sectors = 32
    var pages: Int { workPages + slots + 1 }
    var markedPage: PageIndex { PageIndex(firstPage + workPages + slots) }
    func address(page: Int, word: Int = 0) -> GuestAddress { GuestAddress((firstPage + page) * pageSize + word * 8) }
}

struct ToyMachine {
    enum Outcome { case stepped, blocked, halted }

    let layout: ToyLayout
    let seed: UInt64
    let length: Int
    /// A fixed program instead of a random one.
    var script: [ToyOperation]?

    // Registers.
    var step = 0
    var accumulator: UInt64 = 1
    var nextID: UInt64 = 1
    var isMarked = false
    var violations: UInt64 = 0
    var pending: [ToyPending] = []
    /// Completions that it was told of and has not looked at: the id, and whether it went well.
    var inbox: [UInt64: UInt64] = [:]
    /// Completions that it can't have asked for.
    var unexpected: UInt64 = 0

    init(layout: ToyLayout, seed: UInt64, length: Int, script: [ToyOperation]? = nil) {
        self.layout = layout
        self.seed = seed
        self.length = script?.count ?? length
        self.script = script
    }

    static let mostPending = 6

    var isHalted: Bool { step >= length && pending.isEmpty }

    mutating func complete(_ completion: RequestCompletion) {
        let id = completion.request.rawValue
        if !pending.contains(where: { $0.id == id }) || inbox[id] != nil { unexpected += 1 }
        inbox[id] = completion.status == .done ? 1 : 2
    }

    /// The operation of the present step, from the registers alone.
    func operation() -> ToyOperation {
        if let script { return script[step] }
        var random = SeededGenerator(seed: seed, UInt64(step), layout.index.rawValue)
        let device = random.below(layout.devices)
        let sectors = 1 + random.below(min(8, layout.sectors))
        let sector = layout.firstSector + random.below(layout.sectors - sectors + 1)
        let word = random.below(layout.workPages * pageSize / 8)
        switch random.below(100) {
        case ..<35: return .store(word: word)
        case ..<48: return .load(word: word)
        case ..<64: return .read(device: device, sector: sector, sectors: sectors, slot: random.below(layout.slots))
        case ..<80: return .write(device: device, sector: sector, sectors: sectors, page: random.below(layout.workPages))
        case ..<83: return .flush(device: device)
        case ..<88: return .wait
        case ..<93: return .mark(readOnly: random.chance(1, in: 2))
        default: return .storeMarked
        }
    }

    mutating func run(in world: any ToyWorld) throws -> Outcome {
        guard step < length else {
            if pending.isEmpty { return .halted }
            return try finish(pending[0], in: world) ? .stepped : .blocked
        }
        let operation = operation()
        if case .read(_, _, _, let slot) = operation, let user = pending.first(where: { $0.slot == slot }), try !finish(user, in: world) {
            return .blocked
        }
        switch operation {
        case .store(let word):
            accumulator = SeededMix.mix(accumulator ^ UInt64(word))
            guard try world.store(accumulator, at: layout.address(page: 0, word: word)) else {
                throw TestFailure("a page that may be written was refused")
            }
        case .load(let word): accumulator = SeededMix.mix(accumulator ^ (try world.load(layout.address(page: 0, word: word))))
        case .read(let device, let sector, let sectors, let slot):
            guard try makeRoom(in: world) else { return .blocked }
            try submit(.read, device, sector, sectors, layout.address(page: layout.workPages + slot), slot, in: world)
        case .write(let device, let sector, let sectors, let page):
            guard try makeRoom(in: world) else { return .blocked }
            try submit(.write, device, sector, sectors, layout.address(page: page), nil, in: world)
        case .flush(let device):
            guard try makeRoom(in: world) else { return .blocked }
            try submit(.flush, device, 0, 0, layout.address(page: 0), nil, in: world)
        case .wait:
            if let oldest = pending.first, try !finish(oldest, in: world) { return .blocked }
        case .mark(let readOnly):
            try world.setReadOnly(readOnly, layout.markedPage)
            isMarked = readOnly
        case .storeMarked:
            accumulator = SeededMix.mix(accumulator)
            let isStored = try world.store(accumulator, at: GuestAddress(layout.markedPage.int * pageSize + step % 512 * 8))
            guard isStored != isMarked else { throw TestFailure("step \(step): stored: \(isStored), read-only: \(isMarked)") }
            if !isStored { violations += 1 }
        }
        step += 1
        return .stepped
    }

    private mutating func makeRoom(in world: any ToyWorld) throws -> Bool {
        try pending.count < Self.mostPending ? true : finish(pending[0], in: world)
    }

    /// Looks at a finished request; false while it is not finished.
    private mutating func finish(_ request: ToyPending, in world: any ToyWorld) throws -> Bool {
        guard let status = inbox.removeValue(forKey: request.id) else { return false }
        pending.removeAll { $0 == request }
        accumulator = SeededMix.mix(accumulator ^ status ^ request.id)
        if let slot = request.slot {
            for word in stride(from: 0, to: request.byteLength / 8, by: 8) {
                accumulator = SeededMix.mix(accumulator ^ (try world.load(layout.address(page: layout.workPages + slot, word: word))))
            }
        }
        return true
    }

    private mutating func submit(
        _ operation: GuestRequest.Operation, _ device: Int, _ sector: Int, _ sectors: Int, _ address: GuestAddress, _ slot: Int?,
        in world: any ToyWorld
    ) throws {
        let id = layout.index.rawValue << 32 | nextID
        nextID += 1
        pending.append(ToyPending(id: id, slot: slot, byteLength: sectors * 512))
        try world.submit(
            GuestRequest(
                id: RequestID(id), operation, device: DeviceIndex(device), offset: DeviceOffset(sector * 512),
                byteLength: ByteCount(sectors * 512),
                address: address, processor: layout.index))
    }

    // MARK: Its state as bytes

    func encoded() -> [UInt8] {
        var words = [UInt64(step), accumulator, nextID, isMarked ? 1 : 0, violations, unexpected, UInt64(pending.count)]
        for request in pending { words += [request.id, UInt64(request.slot.map { $0 + 1 } ?? 0), UInt64(request.byteLength)] }
        for (id, status) in inbox.sorted(by: { $0.key < $1.key }) { words += [id, status] }
        return words.flatMap { word in (0..<8).map { UInt8(truncatingIfNeeded: word >> (8 * $0)) } }
    }

    mutating func decode(_ bytes: [UInt8]) {
        let words = stride(from: 0, to: bytes.count, by: 8).map { start in
            (0..<8).reduce(UInt64(0)) { $0 | UInt64(bytes[start + $1]) << (8 * $1) }
        }
        (step, accumulator, nextID, isMarked, violations, unexpected) = (
            Int(words[0]), words[1], words[2], words[3] == 1, words[4], words[5]
        )
        let count = Int(words[6])
        pending = (0..<count).map {
            ToyPending(
                id: words[7 + 3 * $0], slot: words[8 + 3 * $0] == 0 ? nil : Int(words[8 + 3 * $0]) - 1, byteLength: Int(words[9 + 3 * $0]))
        }
        inbox = [:]
        for index in stride(from: 7 + 3 * count, to: words.count, by: 2) { inbox[words[index]] = words[index + 1] }
    }
}

enum SeededMix {
    static func mix(_ value: UInt64) -> UInt64 {
        var random = SeededGenerator(seed: value)
        return random.next()
    }
}

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}
