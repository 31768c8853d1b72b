// The workload machine under a checkpointer, and the scheduler: at each point of a checkpoint it is chosen what the machine and its device do before
// the checkpoint goes on. All of it on one thread, so that a run is decided by its program and its choices.
//
// Invariants:
// - Where the checkpointer waits for requests, they are completed before, in whatever order is chosen.
// - After a run nothing is under way, and the next one goes on with the machine as it is: its checkpoint builds on this one's.

import CheckpointCore
import Foundation
@testable import LiveCheckpoint
import MachineMemory
import Threading
import Units
@testable import VirtualDisks

/// Where a run offers choices. Elsewhere the checkpoint goes on without the machine having done anything.
struct ChoicePoints: Sendable {
    var steps: Set<LiveStep>
    /// Between two pieces of memory that are saved.
    var whileSaving = false
    /// At each block group that is merged.
    var whileCommitting = false

    static let all = ChoicePoints(steps: Set(LiveStep.allCases), whileSaving: true, whileCommitting: true)
}

final class WorkloadScene: @unchecked Sendable {
    let machine: WorkloadMachine
    let image: HeldImage
    private let jobs = HeldJobs()
    /// Whether reading and writing overlays are events of their own; otherwise they are done at once.
    private let holdsJobs: Bool
    /// Where overlays are made: in shared memory, where files are made durable in no time.
    let folder: String
    private let store: any CheckpointDataStore
    private(set) var checkpointer: LiveCheckpointer!
    private var points = ChoicePoints.all
    private var choices = Choices()
    private var program: [Instruction] = []
    private var next = 0
    private var instructionsAtResume = 0
    /// Whether the machine consumes each request as soon as it can; otherwise the program says when.
    let consumesAtOnce: Bool
    private var isPumping = false
    private var isCommitting = false
    private var runCount = 0
    private(set) var steps: [LiveStep] = []
    /// For tests with a script: called at each step, before anything else is done there; at each call of the store; at each merged group.
    var onStep: ((LiveStep) -> Void)?
    var onCall: ((StoreCall) throws(EngineError) -> Void)?
    var onMerge: (() -> Void)?
    /// Otherwise somebody else completes what the checkpointer waits for.
    var completesPending = true
    /// Requests of the checkpointer complete at once at every step, and the machine's with them.
    var passesAlways = false

    /// Two block groups and a half, of 4 KiB.
    static let sectorCount = 20

    init(
        pageCount: Int = 6, sectorCount: Int = WorkloadScene.sectorCount, rules: any DiskRules = StandardDiskRules(), consumesAtOnce: Bool,
        effect: HeldImage.Effect = .atCompletion, holdsJobs: Bool = false, store: any CheckpointDataStore = MemoryStore()
    ) throws {
        self.holdsJobs = holdsJobs
        self.store = store
        folder = "/dev/shm/ckstore-\(UUID())"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        self.consumesAtOnce = consumesAtOnce
        let content = (0..<sectorCount * sectorSize).map { UInt8(truncatingIfNeeded: $0 / sectorSize &* 3 &+ 1) }
        image = HeldImage(content)
        image.state.withLock { $0.effect = effect }
        let disk = try VirtualDisk("vda", parent: image, workers: jobs, groupSize: .kibibytes(4), rules: rules)
        let ram = try GuestMemory("ram", byteLength: ByteCount(pageCount * pageSize), sharing: .shared)
        unsafe ram.bytes.copyBytes(from: (0..<ram.byteLength.int).map { UInt8(truncatingIfNeeded: $0 / sectorSize &* 7 &+ 128) })
        machine = WorkloadMachine(ram, disk, diskContent: content)
        var options = LiveCheckpointer.Options()
        options.workers = 1
        options.step = { [unowned self] in self.reached($0) }
        let hooked = HookedStore(inner: store) { [unowned self] (call) throws(EngineError) in
            try self.onCall?(call)
            if case .writePages(let name) = call, name.hasPrefix("memory:"), self.points.whileSaving { self.pump() }
        }
        checkpointer = try LiveCheckpointer(machine, store: hooked, overlayFolder: folder, options: options)
    }

    func close() {
        image.state.withLock { $0.holds = false }
        jobs.setHolds(false)
        completeAll()
        checkpointer.close()
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// One run: the program, and a checkpoint at some point of it. Throws what is wrong.
    ///
    /// - Parameters:
    ///   - before: so many instructions are executed before the checkpoint begins.
    ///   - atResume: so many are executed as soon as the machine goes on, and their requests completed.
    @discardableResult
    func run(
        _ program: [Instruction], _ choices: Choices, _ points: ChoicePoints, before: Int = 0, atResume: Int = 0
    ) throws -> LiveCheckpointReport {
        (self.program, self.choices, self.points, next) = (program, choices, points, 0)
        instructionsAtResume = atResume
        steps = []
        runCount += 1
        for _ in 0..<before { advance() }
        let report = try checkpointer.checkpoint("\(runCount)")
        finishProgram()
        try check("\(runCount)")
        return report
    }

    // MARK: Points of the checkpoint

    private func reached(_ step: LiveStep) {
        steps.append(step)
        onStep?(step)
        switch step {
        case _ where !completesPending: break
        case .waitForAllRequests: complete { _ in true }
        case .waitForReads: complete { $0 == .read }
        case .copyDisks, .recordDisks: complete { step == .recordDisks || $0 == .write }
        default: break
        }
        if step == .commitOverlays { isCommitting = true }
        if step == .resumeNormalOperation { isCommitting = false }
        if step == .saveDeviceState, instructionsAtResume > 0 {
            for _ in 0..<instructionsAtResume { advance() }
            completeAll()
        }
        if points.steps.contains(step) { pump() }
        if isCommitting { completeAll() }
        let passes = passesAlways || (step >= .copyDisks && step < .resumeNormalOperation)
        jobs.setHolds(holdsJobs && !passes)
        let isTold = isCommitting && (points.whileCommitting || onMerge != nil)
        image.state.withLock { state in
            state.holds = !passes
            state.beforePassing = nil
            if isTold { state.beforePassing = { [unowned self] in self.pump() } }
        }
    }

    /// Completes what was under way at the instant, of the kinds that are meant, whatever else has to be completed before.
    private func complete(_ isMeant: @escaping (DiskOperation) -> Bool) {
        while hasPending(isMeant) {
            let count = eventCount
            guard count > 0 else { preconditionFailure("requests are stuck: \(machine.disk.pendingRequests)") }
            happen(choices.choose(count))
        }
    }

    private func hasPending(_ isMeant: (DiskOperation) -> Bool) -> Bool {
        machine.disk.state.withLock { state in (state.checkpoint?.pending ?? []).contains { isMeant($0.operation) && !$0.isDone } }
    }

    /// Lets the machine and its device do as much as is chosen.
    private func pump() {
        guard !isPumping else { return }
        isPumping = true
        let held = image.state.withLock { state in
            defer { state.holds = true }
            return state.holds
        }
        jobs.setHolds(holdsJobs)
        if isCommitting { onMerge?() }
        while true {
            consumeDelivered()
            let waiting = eventCount
            let canAdvance = next < program.count && machine.canExecute(program[next])
            guard waiting > 0 || canAdvance else { break }
            let choice = choices.choose(waiting + (canAdvance ? 2 : 1))
            if choice == 0 { break }
            if choice <= waiting { happen(choice - 1) } else { advance() }
        }
        // The commit waits for what has been started, and nobody else is there to complete it.
        if isCommitting { completeAll() }
        image.state.withLock { $0.holds = held }
        jobs.setHolds(holdsJobs && held)
        isPumping = false
    }

    // MARK: What the device does

    private var eventCount: Int { image.held.count + jobs.count }

    private func happen(_ event: Int) {
        let held = image.held
        if event < held.count { image.complete(held[event]) } else { jobs.runJob(event - held.count) }
    }

    /// Completes everything, also what comes to wait meanwhile.
    func completeAll() { while eventCount > 0 { happen(0) } }

    private func advance() {
        guard machine.execute(program[next]) else { preconditionFailure("\(program[next]) can't be executed") }
        next += 1
    }

    private func consumeDelivered() {
        guard consumesAtOnce else { return }
        for slot in machine.deliveredSlots { machine.execute(.consume(slot: slot)) }
    }

    private func finishProgram() {
        while next < program.count {
            consumeDelivered()
            if machine.canExecute(program[next]) { advance() } else { happen(0) }
        }
        completeAll()
        consumeDelivered()
    }

    // MARK: Comparing

    /// What the newest checkpoint holds.
    func checkpointed() throws -> WorkloadModel {
        let name = "\(runCount)"
        let content: MemoryStore.Content
        if let store = store as? MemoryStore {
            guard let found = store.content(name) else { throw TestFailure("no checkpoint") }
            content = found
        } else {
            content = try store.source(name).content()
        }
        guard let memory = content[MachineRecord.memoryRegion("ram")], let disk = content[MachineRecord.diskRegion("vda")],
            let registers = content[MachineRecord.deviceStateRegionName].flatMap({ Registers(decoding: $0) })
        else { throw TestFailure("a region is missing") }
        return WorkloadModel(memory: memory, disk: disk, registers: registers)
    }

    private func check(_ name: String) throws {
        guard let expected = machine.modelAtStop else { throw TestFailure("the machine was never stopped") }
        let found = try checkpointed()
        if let difference = WorkloadModel.difference(found.memory, expected.memory) { throw TestFailure("the checkpointed memory: \(difference)") }
        if let difference = WorkloadModel.difference(found.disk, expected.disk) { throw TestFailure("the checkpointed disk: \(difference)") }
        guard found.registers == expected.registers else {
            throw TestFailure("the device state: \(found.registers), not \(expected.registers)")
        }
        guard machine.disk.pendingRequests.isEmpty else { throw TestFailure("requests are stuck: \(machine.disk.pendingRequests)") }
        if let difference = machine.difference(diskContent: image.content) { throw TestFailure(difference) }
    }
}

extension CheckpointSource {
    /// All regions, whole.
    func content() throws -> MemoryStore.Content {
        var result: MemoryStore.Content = [:]
        for summary in regions {
            let region = try region(summary.name)
            let pages = PageCount(covering: summary.byteLength)
            var bytes = [UInt8](repeating: 0, count: pages.bytes.int)
            try unsafe bytes.withUnsafeMutableBytes { try unsafe region.read(pages: PageIndex(UInt64(0))..<PageIndex(pages.rawValue), into: $0) }
            result[summary.name] = Array(bytes.prefix(summary.byteLength.int))
        }
        return result
    }
}
