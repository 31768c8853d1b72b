// The shared memory of one guest, on its way into a checkpoint: found, tracked, read while the guest runs, and at the stop.
//
// Invariants:
// - A page that was written after it was read is reported by a later scan, and read again before `finish`.
// - Pages are copied here once before they are judged, so that a page that changes meanwhile is stored as one of its states, and read again.
// - Memory that the guest gave back is looked for in the stop wherever the machine has a device that can do so.

import CheckpointCore
import LiveMemory
import MigrationStream
import QMP
import StoreFormat
import Threading
import Units

/// All shared backends of one machine. Used by one thread; saving works on several.
final class GuestMemory {
    /// One backend.
    private struct Part {
        let id: String
        let block: SharedMemoryBlock
        let tracker: WriteTracker
        let region: any RegionSink
        /// What the last scan found and nobody has saved.
        var pending = PageRanges()
        /// What the last scan alone found.
        var recent = PageRanges()
        /// Pages that have been saved as data or zeros.
        var present = PageRanges()
        /// Copied in the stop.
        let copied: CopiedPages
        /// For dirty sets that take longer to copy than to protect.
        var copyOnWrite: CopyOnWriteRanges?
    }

    /// Shorter runs are copied in the stop: each protected one makes it some microseconds longer.
    private static let longRun = PageCount(300)
    /// Runs nearer to one another than this count as one.
    private static let bridgedGap = PageCount(8)
    private static let manyInAMoment = PageCount(1024)

    private var parts: [Part] = []
    private let session: CheckpointSession
    private let givesMemoryBack: Bool
    private let guestThreads: Set<Int32>
    private(set) var pagesRead = PageCount.zero

    /// Finds and opens the memory; nothing is tracked yet. The process is held up for less than a millisecond.
    init(_ session: CheckpointSession, copyingAtMost pages: PageCount) throws(EngineError) {
        self.session = session
        givesMemoryBack = try Self.canGiveBack(session.qmp)
        guestThreads = try Self.guestThreads(session.qmp)
        for (backend, mapping, process) in try Self.find(session.machine, session.qmp) {
            let block = try SharedMemoryBlock(process, mapping)
            let region = try session.sink.addRegion(
                MachineRecord.memoryRegion(backend.id), kind: .memory, byteLength: mapping.length)
            parts.append(
                Part(
                    id: backend.id, block: block, tracker: try WriteTracker(block, avoiding: guestThreads), region: region,
                    copied: CopiedPages(room: pages)))
        }
    }

    /// The blocks that come this way and not by the stream.
    var blockNames: Set<String> { Set(parts.map(\.id)) }

    /// Where each shared backend is mapped.
    /// - Throws: `.unsupported` when there is none, or it can't be told which it is.
    static func find(
        _ machine: MachineState, _ qmp: QMPClient
    ) throws(EngineError) -> [(backend: MachineState.Backend, mapping: MemoryMapping, process: TargetProcess)] {
        let shared = machine.backends.filter(\.isShared)
        guard !shared.isEmpty else {
            throw EngineError(
                .unsupported, "the machine's memory is private to QEMU",
                remedy: "Give it shared memory (-object memory-backend-memfd,id=mem,size=...,share=on -machine ...,memory-backend=mem), or use --engine background.")
        }
        let covered = shared.reduce(ByteCount.zero) { $0 + $1.byteLength }
        guard covered >= machine.memoryLength else {
            throw EngineError(
                .unsupported, "only a part of the machine's memory is shared: the rest could be saved only while it stands still",
                remedy: "Share all memory backends, or use --engine background.")
        }
        guard qmp.processID > 0 else {
            throw EngineError(
                .unsupported, "the machine's process can't be seen from here", remedy: "Run ckstore in a process namespace that has it.")
        }
        let process = try TargetProcess(pid: qmp.processID)
        let mappings = try process.mappings().sharedRegions
        var found: [(backend: MachineState.Backend, mapping: MemoryMapping, process: TargetProcess)] = []
        for backend in shared {
            let candidates = mappings.filter { $0.length == backend.byteLength }
            guard candidates.count == 1 else {
                throw EngineError(
                    .unsupported,
                    candidates.isEmpty
                        ? "no mapping of QEMU has the length of memory backend \(backend.id)"
                        : "\(candidates.count) mappings of QEMU have the length of memory backend \(backend.id)",
                    remedy: "Use --engine background.", place: backend.id)
            }
            found.append((backend, candidates[0], process))
        }
        return found
    }

    static func guestThreads(_ qmp: QMPClient) throws(EngineError) -> Set<Int32> {
        Set(try qmp.execute("query-cpus-fast").array?.compactMap { $0["thread-id"]?.integer.flatMap(Int32.init(exactly:)) } ?? [])
    }

    /// Whether the machine has a device through which its guest can give memory back.
    private static func canGiveBack(_ qmp: QMPClient) throws(EngineError) -> Bool {
        do throws(EngineError) { try qmp.execute("query-balloon") } catch where error.code == .refused {
            return try qmp.execute("query-memory-devices").array?.contains { $0["type"]?.string == "virtio-mem" } ?? false
        }
        return true
    }

    // MARK: while the guest runs

    /// Begins to track.
    func arm() throws(EngineError) {
        for part in parts { try part.tracker.arm() }
    }

    /// Reads everything once.
    func saveAll() throws(EngineError) {
        for index in parts.indices {
            let block = parts[index].block
            let populated = try block.populate()
            // Of huge pages nobody knows which others hold something; reading those provides none.
            let present = block.absentPagesAreZero ? populated : PageRanges([block.pages])
            parts[index].present = present
            for hole in PageRanges([block.pages]).subtracting(present).ranges { try parts[index].region.putZeros(hole) }
            try save(present, of: parts[index])
        }
    }

    /// Looks what was written since the last time. Returns how many pages nobody has saved.
    func scan() throws(EngineError) -> PageCount {
        var count = PageCount.zero
        for index in parts.indices {
            parts[index].recent = try parts[index].tracker.scan()
            parts[index].pending = parts[index].pending.union(parts[index].recent)
            parts[index].present = parts[index].present.union(parts[index].pending)
            count += parts[index].pending.count
        }
        return count
    }

    /// Saves what the scans have found.
    func saveScanned() throws(EngineError) {
        for index in parts.indices {
            let pending = parts[index].pending
            parts[index].pending = PageRanges()
            try save(pending, of: parts[index])
        }
    }

    /// Prepares for more dirty pages than can be copied in a short stop: those in long runs are sure to be written again, where the last scan,
    /// a moment after the one before, found many; they will be protected in the stop and copied on write after it. Answers how many others nobody has saved.
    func prepareCopyOnWrite() throws(EngineError) -> PageCount {
        var count = PageCount.zero
        for index in parts.indices {
            defer { count += parts[index].pending.count }
            let part = parts[index]
            // So many within a moment will be all over what was written before, too, until the stop comes.
            guard part.copyOnWrite == nil, part.recent.count > Self.manyInAMoment else { continue }
            let hot = part.pending.longRuns(atLeast: Self.longRun, bridging: Self.bridgedGap)
            guard hot.count > part.copied.room else { continue }
            try checkRoom(for: hot)
            let copyOnWrite = try CopyOnWriteRanges(part.block, avoiding: guestThreads)
            try copyOnWrite.prepare(hot, from: part.tracker)
            parts[index].copyOnWrite = copyOnWrite
            parts[index].pending = part.pending.subtracting(copyOnWrite.pages)
        }
        return count
    }

    /// Refuses a hot set whose copies don't fit this host's memory.
    private func checkRoom(for hot: PageRanges) throws(EngineError) {
        let available = try HostMemory.available()
        guard available.rawValue > hot.count.bytes.rawValue / 8 * 9 else {
            throw EngineError(
                .noMemory,
                "the guest writes \(hot.count.bytes.rawValue >> 20) MiB faster than they are stored; a copy of them does not fit the \(available.rawValue >> 20) MiB that are free",
                remedy: "Free memory, or take the checkpoint when the guest writes less.")
        }
    }

    /// Provides the buffers that the stop will need: as the last scan was, and a quarter more.
    func makeRoomForStop() throws(EngineError) {
        for part in parts {
            let expected = max(part.recent.count, part.pending.count)
            part.copied.makeRoom(PageCount(expected.rawValue * 5 / 4))
        }
    }

    // MARK: in the stop, and after it

    /// Copies what is not saved as it is now, or protects it until it has been copied. The guest stands still.
    func captureInStop() throws(EngineError) {
        _ = try scan()
        for index in parts.indices {
            let part = parts[index]
            try part.copyOnWrite?.protect()
            try part.copied.take(part.pending, of: part.block)
            parts[index].pending = PageRanges()
            guard givesMemoryBack, part.block.absentPagesAreZero else { continue }
            let now = try part.block.presentPages()
            part.copied.zeros = part.present.subtracting(now)
        }
    }

    /// Saves what was copied in the stop, and what is being copied on write since.
    func finish() throws(EngineError) {
        for part in parts {
            for range in part.copied.zeros.ranges { try part.region.putZeros(range) }
            try part.copied.save(to: part.region)
            pagesRead += part.copied.count
            guard let copyOnWrite = part.copyOnWrite else { continue }
            unsafe try copyOnWrite.deliver { (first, bytes) throws(EngineError) in
                try unsafe part.region.save(bytes, at: first, isScattered: bytes.count < pagesPerRun * pageSize)
            }
            pagesRead += copyOnWrite.pages.count
        }
    }

    /// Ends the tracking.
    func release() throws(EngineError) {
        for part in parts {
            try part.copyOnWrite?.cancel()
            try part.tracker.disarm()
        }
    }

    /// Whether the stream's list has the blocks that were read here.
    func check(_ blocks: [StreamRAMBlock]) throws(EngineError) {
        for part in parts where !blocks.contains(where: { $0.name == part.id && $0.byteLength == part.block.mapping.length }) {
            throw EngineError(
                .unsupported, "QEMU's stream has no block of that name and length", remedy: "Use --engine background.", place: part.id)
        }
    }

    private func save(_ pages: PageRanges, of part: Part) throws(EngineError) {
        let before = pagesRead
        try PageSaver(part.block, into: part.region).save(pages, workers: session.parallelism) { [session] done in
            session.reportPages(before + done)
        }
        pagesRead += pages.count
    }
}
