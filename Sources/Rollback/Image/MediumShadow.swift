// A shadow on a medium, made so that a crash at any point leaves the last checkpoint whole. Formats/ROLLBACK.md.
//
// Each page has two locations. Pages of the checkpoint in the making go to the location that the committed one does not use; then the table
// that says which location holds what goes to the area that the committed one does not use; a flush; then the record, twice; a flush.
//
// Invariants:
// - Nothing that the committed record speaks of is overwritten.
// - A record is written only when everything that it speaks of is durable.
// - After a failed flush, or a record that may be written half, nothing is written any more: either checkpoint may be the durable one.

import CheckpointCore
import CheckpointStore
import Media
import PageCodec
import Threading
import Units

/// A shadow on a medium. Thread-safe.
final class MediumShadow: Shadow {
    private struct State {
        /// As on the medium; nil before the first commit.
        var epoch: RollbackEpoch
        /// The committed table, and the one in the making.
        let committed: ImageTable
        let next: ImageTable
        /// Pages put since the last commit.
        var staged: PageBitmap
        /// The chunks of each area on the medium that differ from the table in the making, or may.
        var stale: [PageBitmap]
        var failure: EngineError?
    }

    private let medium: any Medium
    private let geometry: ImageGeometry
    private let image: Hash128
    private let name: String
    private let state: Lock<State>

    /// Takes the medium over: an image of a memory of this size goes on, and stays as it is until the first commit.
    init(_ medium: any Medium, _ geometry: ImageGeometry, name: String, replacesContent: Bool) throws(EngineError) {
        self.medium = medium
        self.geometry = geometry
        self.name = name
        try StoredImage.lock(medium, .exclusive)
        do throws(EngineError) {
            let found = try Self.takeOver(medium, geometry, replacesContent)
            image = found?.record.image ?? Hash128(low: UInt64.random(in: 1 ... .max), high: UInt64.random(in: 1 ... .max))
            let committed = found?.table ?? ImageTable(geometry)
            let next = ImageTable(geometry)
            let allChunks = PageBitmap(pageCount: committed.chunkCount, isFull: true)
            next.copy(allChunks.pageRanges, from: committed)
            state = Lock(
                State(
                    epoch: found?.record.epoch ?? .none, committed: committed, next: next, staged: PageBitmap(pageCount: geometry.pageCount),
                    stale: [allChunks, allChunks]))
        } catch {
            try StoredImage.unlock(medium)
            throw error
        }
    }

    private static func takeOver(_ medium: any Medium, _ geometry: ImageGeometry, _ replaces: Bool) throws(EngineError) -> StoredImage? {
        var found: StoredImage?
        do throws(EngineError) {
            found = try StoredImage.load(medium)
            if let other = found?.record.geometry, other != geometry {
                throw EngineError(
                    .mismatch, "the medium holds an image of \(other.byteLength) bytes of memory and \(other.stateCapacity) of state",
                    remedy: "Choose another medium, or have its content replaced if it is no longer needed.", place: medium.name)
            }
        } catch {
            guard replaces, error.code == .mismatch || error.code == .corrupt || error.code == .unsupported else { throw error }
            found = nil
            try forget(medium)
        }
        try makeRoom(medium, geometry)
        // What this process sees of an earlier one's last commit may not be durable yet; before anything of the commit before that is
        // overwritten, it is. The record is written again, since a flush that has failed leaves pages that no later flush writes.
        if let record = found?.record { try write(record, on: medium) }
        try onMedium { () throws(MediumError) in try medium.flush() }
        return found
    }

    /// Makes sure that nothing of what was there is taken for a record.
    private static func forget(_ medium: any Medium) throws(EngineError) {
        let zeros = AlignedBytes(count: min(ImageGeometry.recordSlotCount * ImageGeometry.recordBytes, medium.size.int))
        try onMedium { () throws(MediumError) in
            try unsafe zeros.withBytes { bytes throws(MediumError) in try unsafe medium.write(at: .zero, bytes) }
            try medium.flush()
        }
    }

    private static func makeRoom(_ medium: any Medium, _ geometry: ImageGeometry) throws(EngineError) {
        if medium.size < geometry.requiredSize {
            do throws(MediumError) { try medium.resize(to: geometry.requiredSize) } catch where error.code == .unsupported {
                throw EngineError(
                    .noSpace, "the medium has \(medium.size) bytes and the checkpoints of this memory need \(geometry.requiredSize)",
                    remedy: "Use a larger medium.", place: medium.name)
            } catch { throw EngineError(StoreError(error)) }
        }
        try onMedium { () throws(MediumError) in try medium.reserve(at: .zero, geometry.requiredSize) }
    }

    var isZeroAtFirst: Bool { false }
    var isSure: Bool { false }
    var residentBytes: ByteCount { geometry.tableBytes + geometry.tableBytes }

    func put(_ pages: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer) throws(EngineError) {
        try state.withLock { state throws(EngineError) in
            if let failure = state.failure { throw failure }
            var start = 0
            let count = (pages.upperBound - pages.lowerBound).int
            while start < count {
                let target = 1 - state.committed.location(pages.lowerBound + PageCount(start))
                var end = start
                while end < count, 1 - state.committed.location(pages.lowerBound + PageCount(end)) == target { end += 1 }
                let run = pages.lowerBound + PageCount(start)..<pages.lowerBound + PageCount(end)
                try unsafe put(run, UnsafeRawBufferPointer(rebasing: bytes[start * pageSize..<end * pageSize]), location: target, &state)
                start = end
            }
        }
    }

    /// Puts pages whose free location is the same. Zero pages are written with the others where they lie among them, and alone not at all.
    private func put(
        _ pages: Range<PageIndex>, _ bytes: UnsafeRawBufferPointer, location: UInt8, _ state: inout State
    ) throws(EngineError) {
        if unsafe !isZero(bytes) {
            try onMedium { () throws(MediumError) in try unsafe medium.write(at: geometry.pageOffset(pages.lowerBound, location: location), bytes) }
        }
        for number in 0..<(pages.upperBound - pages.lowerBound).int {
            let content = unsafe UnsafeRawBufferPointer(rebasing: bytes[number * pageSize..<(number + 1) * pageSize])
            state.next.set(pages.lowerBound + PageCount(number), unsafe tableHash(content), location: location)
        }
        state.staged.insert(pages)
    }

    func commit(_ device: [UInt8]) throws(EngineError) {
        guard ByteCount(device.count) <= geometry.stateCapacity else {
            throw EngineError(
                .invalidInput, "\(device.count) bytes of device state, and the image has room for \(geometry.stateCapacity)",
                remedy: "Give the image a larger state capacity.", place: medium.name)
        }
        try state.withLock { state throws(EngineError) in
            if let failure = state.failure { throw failure }
            let epoch = state.epoch.next
            let chunks = stagedChunks(state)
            for area in 0..<2 { for range in chunks.ranges { state.stale[area].insert(range) } }
            try writeParts(epoch, device, state)
            do throws(EngineError) { try writeRecord(epoch, device, state) } catch {
                state.failure = failed(error)
                throw error
            }
            state.stale[Int(epoch.rawValue % 2)] = PageBitmap(pageCount: state.next.chunkCount)
            state.committed.copy(chunks, from: state.next)
            state.staged = PageBitmap(pageCount: geometry.pageCount)
            state.epoch = epoch
        }
    }

    /// State and table into the area of the epoch before the committed one.
    private func writeParts(_ epoch: RollbackEpoch, _ device: [UInt8], _ state: State) throws(EngineError) {
        let padded = AlignedBytes(count: ByteCount(device.count).roundedUp(to: UInt64(pageSize)).int)
        padded.put(device, at: 0)
        try onMedium { () throws(MediumError) in
            if !device.isEmpty {
                try unsafe padded.withBytes { bytes throws(MediumError) in try unsafe medium.write(at: geometry.stateOffset(of: epoch), bytes) }
            }
            for range in state.stale[Int(epoch.rawValue % 2)].pageRanges.ranges {
                let place = range.lowerBound.int * pageSize..<range.upperBound.int * pageSize
                try unsafe state.next.bytes.withBytes(place) { bytes throws(MediumError) in
                    try unsafe medium.write(at: geometry.tableOffset(of: epoch) + ByteCount(place.lowerBound), bytes)
                }
            }
        }
    }

    /// From the first flush on nothing can be repeated.
    private func writeRecord(_ epoch: RollbackEpoch, _ device: [UInt8], _ state: State) throws(EngineError) {
        let record = ImageRecord(
            image: image, epoch: epoch, geometry: geometry, stateLength: ByteCount(device.count),
            stateHash: unsafe device.withUnsafeBytes { unsafe hash128($0) }, tableHash: state.next.checksum, name: name)
        try onMedium { () throws(MediumError) in try medium.flush() }
        try Self.write(record, on: medium)
        try onMedium { () throws(MediumError) in try medium.flush() }
    }

    /// Into both its slots.
    private static func write(_ record: ImageRecord, on medium: any Medium) throws(EngineError) {
        let bytes = record.encoded()
        try onMedium { () throws(MediumError) in
            for offset in ImageGeometry.recordOffsets(of: record.epoch) {
                try unsafe bytes.withBytes { bytes throws(MediumError) in try unsafe medium.write(at: offset, bytes) }
            }
        }
    }

    private func failed(_ error: EngineError) -> EngineError {
        var error = error
        error.remedy = "Nothing more is kept on this medium: take the next checkpoint on another, or open this one anew."
        error.storeError?.remedy = error.remedy
        return error
    }

    private func stagedChunks(_ state: State) -> PageRanges {
        var chunks = PageBitmap(pageCount: state.next.chunkCount)
        for range in state.staged.pageRanges.ranges {
            let first = state.next.chunks(of: range.lowerBound)
            let last = state.next.chunks(of: PageIndex(range.upperBound.rawValue - 1))
            chunks.insert(first.hash..<last.hash + PageCount(UInt64(1)))
            chunks.insert(first.bit..<last.bit + PageCount(UInt64(1)))
        }
        return chunks.pageRanges
    }

    /// Forgets what was put since the last commit.
    func discard() {
        state.withLock { state in
            state.next.copy(stagedChunks(state), from: state.committed)
            state.staged = PageBitmap(pageCount: geometry.pageCount)
        }
    }

    func read(_ pages: Range<PageIndex>, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        try state.withLock { state throws(EngineError) in try unsafe StoredImage.read(pages, of: state.next, on: medium, into: buffer) }
    }

    /// Gives up the lock; the medium's owner closes it.
    func close() {
        // A lock that can't be given up goes with the medium.
        try? StoredImage.unlock(medium)
    }
}

extension RollbackParts {
    /// The shadow on the medium of the options; nil: they name none.
    func makeMediumShadow() throws(EngineError) -> MediumShadow? {
        guard let medium = options.medium else { return nil }
        let geometry = try ImageGeometry(of: memory.byteLength, stateCapacity: options.stateCapacity, place: medium.name)
        return try MediumShadow(medium, geometry, name: memory.name, replacesContent: options.replacesContent)
    }
}
