// Reads under way at moments that are hard to hit: what devices write without a trap has to be in the checkpoint all the same.

import CheckpointCore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
@testable import MachineMemory
import Testing
import Threading
import Units
import VirtualDisks

/// The rules, with somebody told of each moment before they answer.
private struct WatchedRules: DiskRules {
    let told: @Sendable (ReissueMoment) -> Void
    private let standard = StandardDiskRules()

    init(told: @escaping @Sendable (ReissueMoment) -> Void) { self.told = told }

    func reissues(at moment: ReissueMoment, anyPageCopied: Bool) -> Bool {
        told(moment)
        return standard.reissues(at: moment, anyPageCopied: anyPageCopied)
    }
    var reissueSource: ReissueSource { standard.reissueSource }
    func mustWaitBeforeResuming(_ pending: [RuledRequest]) -> Bool { standard.mustWaitBeforeResuming(pending) }
    func pagesToPreserve(before read: GuestBuffer) -> Range<PageIndex> { standard.pagesToPreserve(before: read) }
    func holds(_ new: RuledRequest, forPending pending: RuledRequest) -> Bool { standard.holds(new, forPending: pending) }
}

/// Counts what it has been told of its requests when it is asked for their outcomes.
private final class ListeningMachine: Machine {
    let name = "listening"
    let identity = MachineIdentity(hypervisor: "test", version: "1", machineType: "listening", architecture: "none")
    let virtualCPUCount = 1
    let memory: [GuestMemory]
    let disks: [VirtualDisk]
    let physicalRanges: [MachineRecord.PhysicalRange] = []
    let told = Lock(0)
    let toldWhenAsked = Lock(0)

    init(_ memory: [GuestMemory], _ disks: [VirtualDisk]) {
        self.memory = memory
        self.disks = disks
    }

    func pause() throws(EngineError) {}
    func resume() throws(EngineError) {}
    func deviceState() throws(EngineError) -> [UInt8] { [1] }
    func settledDeviceState(_ state: [UInt8]) throws(EngineError) -> [UInt8] {
        let count = told.withLock { $0 }
        toldWhenAsked.withLock { $0 = count }
        return state
    }
}

@Suite(.serialized) struct DeviceReadTests {
    /// When the device reads, and when it is asked to.
    private enum Moment: CaseIterable { case beforeCheckpointer, beforeCheckpoint, duringPreparation, atStop, afterResume }

    @Test func `a read into pages that nobody has touched is in the first checkpoint, whenever it was submitted and completed`() async throws {
        try await onPlainThread {
            for submitted in [Moment.beforeCheckpointer, .beforeCheckpoint, .duringPreparation] {
                for completed in [Moment.beforeCheckpoint, .duringPreparation, .atStop, .afterResume] where completed != submitted {
                    if submitted == .duringPreparation, completed == .beforeCheckpoint { continue }
                    try Self.readIntoUntouchedPages(submitted, completed)
                }
            }
        }
    }

    private static func readIntoUntouchedPages(_ submitted: Moment, _ completed: Moment) throws {
        let image = HeldImage([UInt8](repeating: 9, count: 16384))
        let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs())
        let ram = try GuestMemory("ram", byteLength: .kibibytes(16), sharing: .shared)
        let machine = QuietMachine([ram], [disk])
        @Sendable func reached(_ moment: Moment) {
            if moment == submitted {
                disk.submit(DiskRequest(.read, at: .zero, GuestBuffer(ram, offset: .kibibytes(4), byteCount: .kibibytes(8))) { _ in })
            }
            if moment == completed, let held = image.held.first { image.complete(held) }
        }
        let store = MemoryStore()
        // The region is added before memory is prepared, the stop begins after that.
        let hooked = HookedStore(inner: store) { (call) throws(EngineError) in if case .addRegion("memory:ram") = call { reached(.duringPreparation) } }
        var options = LiveCheckpointer.Options()
        options.step = { step in
            if step == .stop { reached(.atStop) }
            if step == .reissueReads { reached(.afterResume) }
            if step == .copyDisks { image.state.withLock { $0.holds = false } }
        }
        reached(.beforeCheckpointer)
        let checkpointer = try LiveCheckpointer(machine, store: hooked, overlayFolder: "/dev/shm", options: options)
        defer { checkpointer.close() }
        reached(.beforeCheckpoint)
        try checkpointer.checkpoint("one")
        guard let found = store.content("one")?["memory:ram"] else { throw TestFailure("no memory") }
        let expected = [UInt8](repeating: 0, count: 4096) + [UInt8](repeating: 9, count: 8192) + [UInt8](repeating: 0, count: 4096)
        if let difference = WorkloadModel.difference(found, expected) {
            throw TestFailure("submitted \(submitted), completed \(completed): \(difference)")
        }
    }

    @Test func `a read that completes while the machine is being resumed does not end before it has been issued again`() async throws {
        try await onPlainThread {
            let isResuming = Lock(false)
            let isCompleting = Lock(false)
            let isResumed = Lock(false)
            let image = HeldImage([UInt8](repeating: 9, count: 8192))
            let completing = Lock<PlainThread?>(nil)
            let rules = WatchedRules { moment in
                switch moment {
                case .machineResumes:
                    isResuming.withLock { $0 = true }
                    completing.withLock { $0 = PlainThread { image.complete(0) } }
                    isCompleting.waitFor { $0 ? () : nil }
                case .originalCompleted:
                    guard isResuming.withLock({ $0 }) else { return }
                    isCompleting.withLock { $0 = true }
                    isCompleting.wake()
                    isResumed.waitFor { $0 ? () : nil }
                }
            }
            let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs(), groupSize: .kibibytes(4), rules: rules)
            let ram = try GuestMemory("ram", byteLength: .kibibytes(16), sharing: .shared)
            unsafe memset(ram.bytes.baseAddress!, 1, ram.bytes.count)
            let memory = try MarkedMemory([ram], options: CopyOnWriteMemory.Options())
            defer { memory.close() }
            disk.watch(memory)
            let ends = Lock(0)
            disk.submit(DiskRequest(.read, at: .zero, GuestBuffer(ram, offset: .zero, byteCount: .kibibytes(4))) { _ in ends.withLock { $0 += 1 } })
            let checkpoint = try disk.beginCheckpoint(overlay: CowFile.create("/dev/shm/ckstore-\(UUID()).cow", geometry: disk.geometry))
            try memory.all[0].prepare(isFull: true)
            try memory.all[0].mark()
            checkpoint.switchOver(memory: memory)
            unsafe ram.bytes.storeBytes(of: 77, toByteOffset: 4000, as: UInt8.self)
            checkpoint.memoryIsResumed(waited: false)
            let endsEarly = ends.withLock { $0 }
            isResumed.withLock { $0 = true }
            isResumed.wake()
            completing.withLock { $0 }?.join()
            let isHeld = !image.held.isEmpty
            image.state.withLock { $0.holds = false }
            image.completeAll()
            let endsLate = ends.withLock { $0 }
            try checkpoint.abort()
            guard endsEarly == 0, isHeld, endsLate == 1 else {
                throw TestFailure("ended \(endsEarly) times before it was issued again (\(isHeld)), \(endsLate) times after that")
            }
        }
    }

    @Test func `a machine is asked for the outcomes of its requests when it has been told all of them`() async throws {
        try await onPlainThread {
            let image = HeldImage([UInt8](repeating: 9, count: 8192))
            let disk = try VirtualDisk("vda", parent: image, workers: HeldJobs(), groupSize: .kibibytes(4))
            let ram = try GuestMemory("ram", byteLength: .kibibytes(16), sharing: .shared)
            let machine = ListeningMachine([ram], [disk])
            for (operation, slot) in [(DiskOperation.read, 0), (.write, 4096), (.flush, 0)] {
                let buffer = operation == .flush ? nil : GuestBuffer(ram, offset: ByteCount(slot), byteCount: .kibibytes(4))
                disk.submit(
                    DiskRequest(operation, at: DiskOffset(slot), buffer) { [told = machine.told] _ in
                        // Telling takes its time.
                        usleep(20_000)
                        told.withLock { $0 += 1 }
                    })
            }
            let completing = Lock<PlainThread?>(nil)
            var options = LiveCheckpointer.Options()
            options.step = { step in
                if step == .waitForReads { completing.withLock { $0 = PlainThread { image.completeAll() } } }
                if step == .copyDisks { image.state.withLock { $0.holds = false } }
            }
            let checkpointer = try LiveCheckpointer(machine, store: MemoryStore(), overlayFolder: "/dev/shm", options: options)
            defer { checkpointer.close() }
            try checkpointer.checkpoint("one")
            completing.withLock { $0 }?.join()
            guard machine.toldWhenAsked.withLock({ $0 }) == 3 else {
                throw TestFailure("told \(machine.toldWhenAsked.withLock { $0 }) of 3 outcomes")
            }
        }
    }

    @Test func `a device is not kept waiting for room for copies`() async throws {
        try await onPlainThread {
            let ram = try GuestMemory("ram", byteLength: .kibibytes(64), sharing: .shared)
            unsafe memset(ram.bytes.baseAddress!, 1, ram.bytes.count)
            var options = CopyOnWriteMemory.Options()
            options.copyLimit = ByteCount(pageSize)
            let memory = try CopyOnWriteMemory(ram, options: options)
            defer { memory.close() }
            try memory.prepare(isFull: true)
            try memory.mark()
            // The only copy that the limit allows, and more of them: nothing is being saved that could make room.
            unsafe ram.bytes.storeBytes(of: 2, toByteOffset: 0, as: UInt8.self)
            let isDone = Lock(false)
            let device = PlainThread {
                memory.preserve(PageIndex(3)..<PageIndex(9))
                unsafe memset(ram.deviceBytes.baseAddress! + 3 * pageSize, 2, 6 * pageSize)
                isDone.withLock { $0 = true }
                isDone.wake()
            }
            let isInTime = isDone.waitFor(milliseconds: 5000) { $0 ? () : nil } != nil
            let store = MemoryStore()
            let sink = try store.begin("one", parent: nil)
            try memory.save(into: try sink.addRegion("ram", kind: .memory, byteLength: ram.byteLength), hasParent: false, workers: 1) { _, _ in }
            device?.join()
            _ = try sink.commit()
            try memory.finish()
            guard isInTime else { throw TestFailure("the device waited for the store") }
            if let difference = WorkloadModel.difference(store.content("one")!["ram"]!, [UInt8](repeating: 1, count: ram.byteLength.int)) {
                throw TestFailure(difference)
            }
        }
    }

    @Test func `memory that can't be protected keeps what is known to be dirty`() async throws {
        try await onPlainThread {
            // Pages beyond the first piece that is protected at once, so that one piece succeeds before another fails.
            let count = 4096 * 4096
            let bytes = unsafe UnsafeMutableRawBufferPointer(start: mmap(nil, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), count: count)
            defer { unsafe munmap(bytes.baseAddress!, count) }
            let ram = try unsafe GuestMemory("ram", adopting: bytes)
            let memory = try CopyOnWriteMemory(ram)
            defer { memory.close() }
            try memory.prepare(isFull: true)
            try memory.mark()
            try memory.finish()
            let pages = Array(0..<40) + Array(4000..<4040)
            for page in pages { unsafe bytes.storeBytes(of: 1, toByteOffset: page * pageSize, as: UInt8.self) }
            // Somebody maps something else in the place of a page: the system has no protection for it any more.
            unsafe mmap(bytes.baseAddress! + 4020 * pageSize, pageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0)
            #expect(throws: EngineError.self) { try memory.prepare(isFull: false) }
            let dirty = memory.units.dirtyPages()
            guard pages.allSatisfy({ dirty.contains(PageIndex($0)) }) else { throw TestFailure("\(dirty.ranges) are dirty") }
        }
    }
}
