// Measuring one kind of memory.
//
// Invariants:
// - Every figure of a comparison is taken of the same bytes, in alternation.
// - Each method starts from resident memory that nobody protects.

import CLiveBench
import CheckpointCore
import CheckpointStore
import Glibc
import LiveCheckpoint
import MachineMemory
import Media
import StoreFormat
import Threading
import Units

struct LiveBenchRun {
    typealias Row = LiveBenchReport.Row

    let kind: LiveBench.Kind
    let memory: GuestMemory
    let scratch: BenchScratch
    let rounds: Int
    let workers: Int
    let say: (String) -> Void

    init(
        _ kind: LiveBench.Kind, _ content: BenchImage, _ size: ByteCount, _ scratch: BenchScratch, rounds: Int, workers: Int, say: @escaping (String) -> Void
    ) throws {
        self.kind = kind
        self.scratch = scratch
        self.rounds = rounds
        self.workers = workers
        self.say = say
        memory = try GuestMemory("memory", byteLength: size, pages: kind.pages, sharing: kind.sharing)
        fill(content)
    }

    private func fill(_ content: BenchImage) {
        var done = 0
        while unsafe done < memory.bytes.count {
            let count = unsafe min(content.memory.count, memory.bytes.count - done)
            unsafe UnsafeMutableRawBufferPointer(rebasing: memory.bytes[done..<done + count]).copyMemory(from: content.memory.piece(0..<count))
            done += count
        }
    }

    var gibibytes: Double { Double(memory.byteLength.rawValue) / Double(1 << 30) }

    func rows() throws -> [Row] {
        let fork = try forkMilliseconds()
        var rows = try firstStops(fork)
        rows += try followingStops()
        if kind == .shared { rows += try remapping() }
        rows += try faults()
        rows += try saves()
        rows += try writers()
        return rows.map { row in
            var row = row
            row.memory = kind.rawValue
            return row
        }
    }

    func row(
        _ name: String, _ value: Double, _ unit: String, peer: Double? = nil, of peerName: String? = nil, target: String? = nil, isMet: Bool? = nil,
        note: String? = nil
    ) -> Row {
        Row(memory: "", name: name, value: value, unit: unit, peer: peer, peerName: peerName, target: target, isMet: isMet, note: note)
    }

    // MARK: Stops

    /// Fork of the same bytes as anonymous memory of the same page size: of shared memory fork copies no page tables, and is no snapshot.
    private func forkMilliseconds() throws -> Double {
        say("fork")
        let twin = kind.sharing == .anonymous ? nil : try GuestMemory("twin", byteLength: memory.byteLength, pages: kind.pages)
        if let twin { unsafe twin.bytes.copyMemory(from: UnsafeRawBufferPointer(memory.bytes)) }
        var times: [Double] = []
        for _ in 0..<max(3, rounds) {
            var nanoseconds: UInt64 = 0
            let child = unsafe ckb_fork_save(nil, 0, -1, &nanoseconds)
            guard child > 0 else { throw systemError("start", "a child", -child) }
            guard ckb_wait(child) == 0 else { throw systemError("wait for", "a child", ECHILD) }
            times.append(Double(nanoseconds) / 1e6)
        }
        return quantile(times)
    }

    /// The stop of the first checkpoint: one of memory that nobody protects.
    private func firstStops(_ fork: Double) throws -> [Row] {
        let inStop = try stops(protectsAhead: false, dirtyPages: nil).first
        let ahead = try stops(protectsAhead: true, dirtyPages: nil).first
        let limit = kind == .shared ? 30 * gibibytes : fork
        return [
            row("first stop, all protected in it", inStop, "ms", peer: fork, of: "fork"),
            row(
                "first stop, protected ahead", ahead, "ms", peer: fork, of: "fork", target: kind == .shared ? "<= 30 ms/GiB" : "<= fork",
                isMet: ahead <= limit),
        ]
    }

    private func followingStops() throws -> [Row] {
        let dirty = max(1, memory.pageCount.int / 100)
        let kept = try stops(protectsAhead: false, dirtyPages: dirty).following
        let ahead = try stops(protectsAhead: true, dirtyPages: dirty).following
        let copied = try copyAheadStop(dirty)
        return [
            row("next stop, 1 % dirty, clean pages kept protected", kept, "ms"),
            row("next stop, 1 % dirty, protected ahead", ahead, "ms", target: "<= 3 ms/GiB", isMet: ahead <= 3 * gibibytes),
            row("next stop, 1 % dirty, saved ahead (kernel's notes)", copied, "ms", target: "<= 3 ms/GiB", isMet: copied <= 3 * gibibytes),
        ]
    }

    /// Medians of the first stop and the ones after some pages were written.
    private func stops(protectsAhead: Bool, dirtyPages: Int?) throws -> (first: Double, following: Double) {
        say("stops")
        var options = CopyOnWriteMemory.Options()
        if !protectsAhead { options.mostRounds = 0 }
        var (first, following): ([Double], [Double]) = ([], [])
        for round in 0..<rounds {
            let instant = try CopyOnWriteMemory(memory, options: options)
            defer { instant.close() }
            first.append(try stop(instant, isFull: true))
            guard let dirtyPages else { continue }
            dirty(dirtyPages, seed: UInt64(round))
            following.append(try stop(instant, isFull: false))
        }
        return (quantile(first), following.isEmpty ? 0 : quantile(following))
    }

    /// One instant of a memory that nobody writes; nothing is saved.
    private func stop(_ instant: CopyOnWriteMemory, isFull: Bool) throws -> Double {
        try instant.prepare(isFull: isFull)
        let time = try seconds { try instant.mark() }
        try instant.finish()
        return time * 1e3
    }

    private func copyAheadStop(_ dirtyPages: Int) throws -> Double {
        let instant = try CopyAheadMemory(memory)
        defer { instant.close() }
        var times: [Double] = []
        for round in 0...rounds {
            dirty(dirtyPages, seed: UInt64(round))
            try instant.prepare(isFull: false, into: NowhereRegion(), hasParent: false, workers: workers)
            let time = try seconds { try instant.mark(pending: PageRanges()) }
            try instant.save(into: NowhereRegion(), hasParent: false, workers: 1) { _, _ in }
            instant.finish()
            if round > 0 { times.append(time * 1e3) }
        }
        return quantile(times)
    }

    /// Writes that many random pages.
    func dirty(_ count: Int, seed: UInt64) {
        var random = BenchRandom(seed: seed)
        for _ in 0..<count {
            let page = Int(random.next() % memory.pageCount.rawValue)
            unsafe memory.bytes.storeBytes(of: random.next(), toByteOffset: page * pageSize, as: UInt64.self)
        }
    }

    /// Shared memory mapped anew as private in the stop: the kernel copies what is written, but what was written has to be brought back.
    private func remapping() throws -> [Row] {
        say("remapping")
        guard let file = memory.descriptor else { return [] }
        let aside = try GuestMemory("aside", byteLength: memory.byteLength)
        var (stops, touches): ([Double], [Double]) = ([], [])
        for round in 0..<rounds {
            let (base, count) = unsafe (memory.bytes.baseAddress!, memory.bytes.count)
            let time = unsafe ckb_remap_private(base, count, file, aside.bytes.baseAddress!)
            guard time >= 0 else { throw systemError("map", "shared memory anew", Int32(-time)) }
            stops.append(Double(time) / 1e6)
            touches.append(quantile(touch(1000, seed: UInt64(round))))
            let status = unsafe ckb_remap_back(base, count, aside.bytes.baseAddress!)
            guard status == 0 else { throw systemError("map", "shared memory back", -status) }
            // The moved mapping has left a hole where it was.
            _ = unsafe mmap(aside.bytes.baseAddress!, count, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0)
        }
        return [
            row("stop of mapping it anew as private (not shipped)", quantile(stops), "ms", note: "a second stop brings back what was written"),
            row("  a write after it, p50", quantile(touches), "us"),
        ]
    }

    // MARK: Writes

    /// Microseconds of writes to random pages.
    func touch(_ count: Int, seed: UInt64) -> [Double] {
        var random = BenchRandom(seed: seed)
        let pages = (0..<count).map { _ in random.next() % memory.pageCount.rawValue }
        var nanoseconds = [UInt32](repeating: 0, count: count)
        unsafe ckb_touch(memory.bytes.baseAddress!, pages, count, &nanoseconds)
        return nanoseconds.map { Double($0) / 1e3 }
    }

    private func faults() throws -> [Row] {
        say("write faults")
        var (alone, forked): ([Double], [Double]) = ([], [])
        let count = min(20000, memory.pageCount.int / 8)
        for round in 0..<rounds {
            let instant = try CopyOnWriteMemory(memory)
            try instant.prepare(isFull: true)
            try instant.mark()
            alone += touch(count, seed: UInt64(round))
            instant.close()
            guard kind.sharing == .anonymous else { continue }
            var nanoseconds: UInt64 = 0
            // A child that stays until it has written a file keeps the pages shared.
            let file = try Self.temporaryFile()
            defer { close(file) }
            let child = unsafe ckb_fork_save(memory.bytes.baseAddress!, memory.bytes.count, file, &nanoseconds)
            guard child > 0 else { throw systemError("start", "a child", -child) }
            forked += touch(count, seed: UInt64(round))
            guard ckb_wait(child) == 0 else { throw systemError("save", "the memory in a child", EIO) }
        }
        let fork = forked.isEmpty ? nil : quantile(forked)
        return [
            row(
                "write fault served, page copied, p50", quantile(alone), "us", peer: fork, of: fork == nil ? nil : "fork, child saving",
                target: kind == .huge ? nil : "<= 12 us", isMet: kind == .huge ? nil : quantile(alone) <= 12),
            row(
                "  the same, p99", quantile(alone, 0.99), "us", peer: forked.isEmpty ? nil : quantile(forked, 0.99),
                of: fork == nil ? nil : "fork, child saving"),
        ]
    }

    static func temporaryFile() throws -> Int32 {
        // O_TMPFILE by its number, which Glibc's module does not show.
        let file = unsafe open("/var/tmp", 0o20200000 | O_RDWR | O_CLOEXEC, 0o600)
        guard file >= 0 else { throw systemError("make a file in", "/var/tmp") }
        return file
    }
}

/// A region that keeps nothing.
struct NowhereRegion: RegionSink {
    func write(_ bytes: UnsafeRawBufferPointer, at first: PageIndex, isStable: Bool) {}
    func put(page: PageIndex, _ bytes: UnsafeRawBufferPointer) {}
    func putZeros(_ pages: Range<PageIndex>) {}
}
