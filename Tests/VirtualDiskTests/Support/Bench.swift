// A disk of a few groups whose requests wait for the test, and a machine's memory: for tests that say step by step what happens.

import CheckpointCore
import MachineMemory
import Threading
import Units
import VirtualDisks

final class Bench: Sendable {
    let backend: ManualBackend
    let memory: FakeMemory
    let disk: VirtualDisk
    let storage = MemoryStorage()
    private let results = Lock<[RequestID: Result<Void, EngineError>]>([:])

    /// Four groups of 4 KiB; sector n is filled with n + 1. Memory page n is filled with n + 101.
    init(_ mode: ManualBackend.Mode = .effectAtCompletion) throws {
        backend = ManualBackend((0..<32 * sectorSize).map { UInt8($0 / sectorSize + 1) }, mode)
        memory = FakeMemory(try GuestMemory("ram", byteLength: .kibibytes(32)))
        disk = try VirtualDisk("disk", parent: backend, workers: ManualWorkers(isImmediate: true), groupSize: .kibibytes(4))
        for page in 0..<8 { memory.write(page * pageSize, [UInt8](repeating: UInt8(page + 101), count: pageSize)) }
    }

    /// A request for one sector, or several, with its buffer at the start of a page.
    @discardableResult
    func submit(_ operation: DiskOperation, _ sectors: Range<Int>, page: Int) -> RequestID {
        let buffer = GuestBuffer(memory.memory, offset: ByteCount(page * pageSize), byteCount: ByteCount(sectors.count * sectorSize))
        let id = Lock(RequestID(UInt64(0)))
        let early = Lock<Result<Void, EngineError>?>(nil)
        let place = DiskOffset(sectors.lowerBound * sectorSize)
        let request = DiskRequest(operation, at: place, operation == .flush ? nil : buffer) { [results] result in
            let own = id.withLock { $0 }
            // It may complete before its number is known here.
            if own == RequestID(UInt64(0)) { early.withLock { $0 = result } } else { results.withLock { $0[own] = result } }
        }
        let number = disk.submit(request)
        id.withLock { $0 = number }
        if let result = early.withLock({ $0 }) { results.withLock { $0[number] = result } }
        return number
    }

    /// What became of a request; nil while it is under way.
    func result(_ id: RequestID) -> Result<Void, EngineError>? { results.withLock { $0[id] } }
    func succeeded(_ id: RequestID) -> Bool { if case .success = result(id) { true } else { false } }

    func overlay() throws -> CowFile { try CowFile.create(on: storage, geometry: disk.geometry) }
    func helper(over parent: OverlayID) throws(EngineError) -> CowFile {
        try CowFile.create(on: MemoryStorage(), geometry: disk.geometry, parent: parent)
    }

    /// A checkpoint at this moment; the machine goes on at once unless it has to wait.
    func checkpoint() throws -> DiskCheckpoint {
        let checkpoint = try disk.beginCheckpoint(overlay: try overlay())
        memory.mark()
        checkpoint.switchOver(memory: memory)
        if !checkpoint.mustWaitBeforeResuming { checkpoint.memoryIsResumed(waited: false) }
        return checkpoint
    }

    /// The first byte of each sector, as the machine sees the disk. Everything must be completed.
    func ongoing() throws -> [UInt8] {
        backend.setMode(.immediate)
        let window = try GuestMemory("window", byteLength: .kibibytes(16))
        disk.submit(DiskRequest(.read, at: .zero, GuestBuffer(window, offset: .zero, byteCount: .kibibytes(16))) { _ in })
        disk.drain()
        return (0..<32).map { unsafe window.bytes[$0 * sectorSize] }
    }

    /// The first byte of each sector, of the image.
    var image: [UInt8] { Self.sectors(backend.content) }
    static func sectors(_ bytes: [UInt8]) -> [UInt8] { (0..<32).map { bytes[$0 * sectorSize] } }
}
