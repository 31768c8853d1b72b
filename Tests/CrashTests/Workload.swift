// The operations of the crash and fault programme, with the model that says what each must leave.
//
// Invariants:
// - A step is planned before it is run: what the store holds before and after it is known to the byte,
//   and depends on nothing but the steps before it.
// - Base stores are made once and forked.

import CheckpointStore
import FaultHarness
import Glibc
import Media
import StoreFormat
import StoreTesting
import Units

/// What a workload is made of.
enum StoreOperation: Sendable {
    case saveFull, saveIncremental, saveEmpty, delete, commitGroup, grow
    /// Saves over any checkpoint, deletes any two, moves a name to any.
    case branch, deleteAny, point
    /// Moves what lives in segments with anything dead.
    case compact
    /// Deletes every second checkpoint that no name leads to.
    case prune
    /// Two checkpoints come from another store, the second as a change of the first; in many steps; cut short and gone on with.
    case receive, receiveInSteps, receiveResumed

    /// Of which every sequence is tried.
    static let common: [StoreOperation] = [.saveFull, .saveIncremental, .saveEmpty, .delete, .commitGroup, .grow, .compact]
    /// What comes from other stores, and what happens to it.
    static let received: [StoreOperation] = [.receive, .receiveInSteps, .receiveResumed, .deleteAny, .prune, .branch, .compact]
    /// What makes the lineage branch, and tombstones come and go.
    static let branching: [StoreOperation] = [.branch, .deleteAny, .point, .commitGroup, .compact]
}

/// What a store holds.
struct StoreModel: Sendable {
    var checkpoints: [String: ModelCheckpoint] = [:]
    /// Names, oldest first.
    var order: [String] = []
    /// What each was saved over, deleted ones included.
    var parents: [String: String] = [:]
    /// Names that move, and the checkpoints that they lead to.
    var references: [String: String] = [:]
    var serial = 0
    /// How long names are, so that few of them fill a node of the catalog.
    var nameLength = 0
    var random: SeededGenerator

    init(seed: UInt64) { random = SeededGenerator(seed: seed) }

    /// The name of the checkpoint that was made last.
    var newName: String {
        let number = String(serial)
        return "c" + String(repeating: "0", count: max(0, nameLength - 1 - number.utf8.count)) + number
    }

    /// Those that no name keeps from being deleted, oldest first.
    var deletable: [String] { order.filter { references[StoreModel.movedName] != $0 } }
    static let movedName = "moved"
    /// What pruning keeps: by their names, every second checkpoint; none that was received.
    static let keptLabel = "keep"
    static func isKept(_ name: String) -> Bool { (Int(name.dropFirst()) ?? 0) % 2 == 0 }

    mutating func remove(_ name: String) {
        checkpoints[name] = nil
        order.removeAll { $0 == name }
        guard references["latest"] == name else { return }
        var ancestor = parents[name]
        while let next = ancestor, checkpoints[next] == nil { ancestor = parents[next] }
        references["latest"] = ancestor
    }
}

/// One checkpoint to be saved.
private struct Save: Sendable {
    var name: String
    var parent: String?
    /// Regions that are written whole.
    var whole: ModelCheckpoint = [:]
    /// Pages of "ram" that are put over the parent's.
    var pages: [Int: [UInt8]] = [:]
    var ramLength = 0

    func begin(on store: CheckpointStore) throws -> CheckpointWriter {
        let labels = StoreModel.isKept(name) ? [StoreModel.keptLabel: "yes"] : [:]
        let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1, labels: labels))
        for (region, bytes) in whole.sorted(by: { $0.key < $1.key }) {
            let kind: RegionKind = region == "ram" ? .memory : .state
            try writer.addRegion(region, kind: kind, byteLength: ByteCount(bytes.count)).write(bytes, isStable: true)
        }
        if !pages.isEmpty {
            let ram = try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ramLength))
            for (page, bytes) in pages.sorted(by: { $0.key < $1.key }) { try ram.put(page: PageIndex(page), bytes) }
        }
        return writer
    }
}

/// An operation on a store whose content is known.
struct Step: Sendable {
    let operation: StoreOperation
    let before: StoreModel
    private(set) var after: StoreModel
    /// States that the store may be in meanwhile.
    private(set) var between: [StoreModel] = []
    private var saves: [Save] = []
    private var doomed: [String] = []
    private(set) var incoming: Incoming?

    static let fullPages = 12
    static let growth = ByteCount.kibibytes(512)

    init(_ operation: StoreOperation, on model: StoreModel) {
        self.operation = operation
        before = model
        after = model
        switch operation {
        case .saveFull: addFull()
        case .saveIncremental: addIncremental()
        case .saveEmpty: add(Save(name: "", parent: nil), [:])
        case .delete: deleteOldest()
        case .commitGroup:
            addFull()
            // Not over the other one of the group.
            if let last = before.order.last { addIncremental(over: last) } else { addFull() }
        case .grow, .compact: break
        case .branch: addIncremental(over: pick(after.order.filter { after.checkpoints[$0]?["ram"] != nil }))
        case .deleteAny:
            for _ in 0..<2 { if let name = pick(after.deletable) { delete(name) } }
        case .point: after.references[StoreModel.movedName] = pick(after.order)
        case .prune:
            for name in after.deletable where !StoreModel.isKept(name) && after.references["latest"] != name { delete(name) }
        case .receive, .receiveInSteps, .receiveResumed: addIncoming()
        }
    }

    /// Does it. Returns when it is acknowledged.
    func perform(on store: CheckpointStore) throws {
        switch operation {
        case .saveFull, .saveIncremental, .saveEmpty, .branch: try saves[0].begin(on: store).commit()
        case .commitGroup: try store.commit(saves.map { try $0.begin(on: store) })
        case .delete, .deleteAny:
            guard !doomed.isEmpty else { return }
            if let obstacle = try store.delete(doomed).obstacle { throw obstacle }
        case .point:
            guard let name = after.references[StoreModel.movedName] else { return }
            try store.setReference(StoreModel.movedName, to: name)
        case .grow: try store.resize(to: store.medium.size + Step.growth)
        case .compact: try store.compactAll()
        case .prune:
            var policy = RetentionPolicy()
            policy.labels = [.init(key: StoreModel.keptLabel)]
            if let obstacle = try store.prune(policy).deletion?.obstacle { throw obstacle }
        case .receive: try incoming?.receive(into: store, inSteps: false)
        case .receiveInSteps: try incoming?.receive(into: store, inSteps: true)
        case .receiveResumed: try incoming?.receiveCut(into: store)
        }
    }

    private mutating func addIncoming() {
        // Names that nobody else gives.
        let (first, second) = ("r\(after.serial + 1)", "r\(after.serial + 2)")
        let incoming = Incoming(first: first, second: second, seed: after.random.next())
        self.incoming = incoming
        for (name, regions) in incoming.contents {
            after.serial += 1
            enter(name, regions, over: name == first ? nil : first)
            if name == first { between.append(after) }
        }
    }

    private mutating func addFull() {
        let ram = (0..<Step.fullPages).flatMap { _ in makePage(&after.random) }
        let state = Array(makePage(&after.random)[..<1000])
        let regions = ["ram": ram, "state": state]
        add(Save(name: "", parent: nil, whole: regions), regions)
    }

    private mutating func addIncremental(over parent: String? = nil) {
        guard let parent = parent ?? after.order.last(where: { after.checkpoints[$0]?["ram"] != nil }),
            var ram = after.checkpoints[parent]?["ram"]
        else { return addFull() }
        var save = Save(name: "", parent: parent, ramLength: ram.count)
        for page in [1, 7, ram.count / pageSize - 1] {
            let bytes = makePage(&after.random)
            save.pages[page] = bytes
            ram.replaceSubrange(page * pageSize..<(page + 1) * pageSize, with: bytes)
        }
        add(save, ["ram": ram])
    }

    private mutating func add(_ save: Save, _ regions: ModelCheckpoint) {
        after.serial += 1
        var save = save
        save.name = after.newName
        saves.append(save)
        enter(save.name, regions, over: save.parent)
    }

    private mutating func enter(_ name: String, _ regions: ModelCheckpoint, over parent: String?) {
        after.checkpoints[name] = regions
        after.order.append(name)
        after.parents[name] = parent
        after.references["latest"] = name
    }

    private mutating func deleteOldest() {
        if let oldest = after.deletable.first { delete(oldest) }
    }

    private mutating func delete(_ name: String) {
        doomed.append(name)
        after.remove(name)
    }

    private mutating func pick(_ names: [String]) -> String? { names.isEmpty ? nil : names[after.random.below(names.count)] }
}

/// A store to start from.
struct BaseStore: Sendable {
    let device: SimulatedDevice
    let model: StoreModel

    /// A few generations old: most of the slot ring was never written.
    static let young = make(seed: 1, rounds: 0)
    /// Twice around the slot ring, with segments that were freed and used again.
    static let old = make(seed: 2, rounds: 9)
    /// With so many checkpoints of long names that nodes of the catalog stay where they were long ago.
    static let crowded = make(seed: 3, rounds: 1, crowd: 50)

    static func make(seed: UInt64, rounds: Int, crowd: Int = 0, size: ByteCount = .mebibytes(4)) -> BaseStore {
        do { return try made(seed: seed, rounds: rounds, crowd: crowd, size: size) } catch { preconditionFailure("no base store: \(error)") }
    }

    private static func made(seed: UInt64, rounds: Int, crowd: Int, size: ByteCount) throws -> BaseStore {
        let device = SimulatedDevice(size: size)
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)),
            environment: testEnvironment(seed: seed))
        var model = StoreModel(seed: seed)
        func run(_ operation: StoreOperation) throws {
            let step = Step(operation, on: model)
            try step.perform(on: store)
            model = step.after
        }
        if crowd > 0 { model.nameLength = 250 }
        for _ in 0..<crowd { try run(.saveEmpty) }
        for operation in [.saveFull, .saveFull, .saveIncremental] as [StoreOperation] { try run(operation) }
        for _ in 0..<rounds {
            try run(.saveFull)
            try run(.delete)
            try run(.saveIncremental)
            try run(.delete)
        }
        try store.requireEqual(model.checkpoints)
        store.close()
        device.forgetLog()
        return BaseStore(device: device, model: model)
    }
}

extension CheckpointStore {
    /// Moves whatever has a dead neighbour, a little at a time; a store that is full of things being read is left as it is.
    @discardableResult func compactAll() throws -> CompactionReport {
        let report = try compact(
            CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, batchBytes: .kibibytes(48), parallelism: 1))
        if let obstacle = report.obstacle, ![.noSpace, .busy].contains(obstacle.code) { throw obstacle }
        if let damage = report.damaged.first { throw damage }
        return report
    }
}

/// All sequences of operations of a length.
func sequences(of length: Int, from operations: [StoreOperation] = StoreOperation.common) -> [[StoreOperation]] {
    guard length > 0 else { return [[]] }
    return sequences(of: length - 1, from: operations).flatMap { prefix in operations.map { prefix + [$0] } }
}

/// What must be true of any store after any crash or fault.
struct StoreCheck: Sendable {
    let step: Step
    /// Whether `step` was acknowledged, so that what was before it may not come back.
    var isAcknowledged: Bool
    var seed: UInt64
    /// Whether space may be counted as alive that nothing reaches: an index could not be read while a checkpoint was deleted.
    var allowsLostSpace = false

    /// Opens the store on `device` and checks all of it; then saves into it and checks again.
    /// Returns the state that was found.
    @discardableResult func run(on device: SimulatedDevice) throws -> StoreModel {
        // Not the numbers of those who wrote: two checkpoints must not draw the same id.
        let environment = testEnvironment(seed: ~seed ^ 0xC4EC)
        let store = try CheckpointStore.open(FaultMedium(device), environment: environment)
        defer { store.close() }
        let found = try state(of: store)
        try store.requireEqual(found.checkpoints, allowsLostSpace: allowsLostSpace)
        let next = Step(.saveIncremental, on: found)
        try next.perform(on: store)
        let again = try CheckpointStore.open(FaultMedium(device), environment: environment)
        defer { again.close() }
        try again.requireEqual(next.after.checkpoints, allowsLostSpace: allowsLostSpace)
        if let incoming = step.incoming { try requireReceived(incoming, again, next.after) }
        return found
    }

    /// What came in part can be gone on with, and does not stay when all has come.
    private func requireReceived(_ incoming: Incoming, _ store: CheckpointStore, _ model: StoreModel) throws {
        try incoming.receiveRest(into: store)
        try incoming.receiveAgain(into: store)
        let all = model.checkpoints.merging(Dictionary(uniqueKeysWithValues: incoming.contents)) { $1 }
        try store.requireEqual(all, allowsLostSpace: allowsLostSpace)
        guard try store.snapshot().names().count == all.count else { throw Mismatch("parts are left of what was received whole") }
    }

    /// Which of the allowed states the store is in, by its names, those that move included; `grow` and `compact` leave them as they were.
    func state(of store: CheckpointStore) throws -> StoreModel {
        let snapshot = try store.snapshot()
        let names = Set(try snapshot.names().filter { !Names.isPartial($0) })
        var references: [String: String] = [:]
        for reference in try snapshot.references() { references[reference.name] = try snapshot.checkpoint(reference.checkpoint).name }
        if names == Set(step.after.order), references == step.after.references { return step.after }
        if let state = step.between.first(where: { Set($0.order) == names && $0.references == references }) {
            if isAcknowledged { throw Mismatch("\(step.operation) was acknowledged and is not all there") }
            return state
        }
        guard names == Set(step.before.order), references == step.before.references else {
            throw Mismatch(
                "checkpoints \(names.sorted()) and names \(references), neither \(step.before.order) and \(step.before.references) "
                    + "nor \(step.after.order) and \(step.after.references)")
        }
        if isAcknowledged { throw Mismatch("\(step.operation) was acknowledged and is gone") }
        return step.before
    }
}

/// Lets the allocator keep what is freed: stores are opened and closed thousands of times a second here, and half
/// of that time would go into giving their buffers back to the system and faulting them in again.
func keepFreedMemory() {
    // Not in Swift's module of the C library: M_TRIM_THRESHOLD is -1 and M_MMAP_THRESHOLD is -3.
    guard let symbol = unsafe dlsym(nil, "mallopt") else { return }
    let mallopt = unsafe unsafeBitCast(symbol, to: (@convention(c) (Int32, Int32) -> Int32).self)
    _ = mallopt(-1, 1 << 30)
    _ = mallopt(-3, 256 << 20)
}

/// Runs `body`: true when it throws a `StoreError` of this kind, false when it throws nothing.
func fails(with code: StoreError.Code, _ body: () throws -> Void) throws -> Bool {
    do {
        try body()
        return false
    } catch let error as StoreError where error.code == code { return true }
}
