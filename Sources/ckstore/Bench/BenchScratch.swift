// The scratch store of a bench: made where nothing was, and removed.
//
// Invariants:
// - What was on the medium before is kept, unless force is given.
// - However the bench ends (return, error, signal), files and shared memory that it made are removed.

import CheckpointStore
import Glibc
import Media
import StoreFormat
import Units

/// A medium for the bench's stores. Confined to one thread.
final class BenchScratch {
    let locator: Locator
    private let size: ByteCount
    private var isOurs = false

    /// Takes the medium over. Throws `.exists` and the like when it is in use for something else.
    init(_ locator: Locator, size: ByteCount, force: Bool) throws {
        self.locator = locator
        self.size = size
        try makeStore(force: force).close()
        isOurs = true
        registerForRemoval(locator)
        if locator.kind == .raw, try capacity() < size {
            throw StoreError(
                .noSpace, "\(locator) has \(try capacity()) bytes; the bench needs \(size)",
                remedy: "Use a smaller --size or a larger device.", medium: locator.description)
        }
    }

    private func capacity() throws -> ByteCount {
        let medium = try openMedium(locator, access: .readOnly)
        defer { medium.close() }
        return medium.size
    }

    /// A new, empty store; what the bench had there before is gone.
    func makeStore() throws -> CheckpointStore {
        if locator.kind != .raw { try removeMedium(locator) }
        return try makeStore(force: true)
    }

    private func makeStore(force: Bool) throws -> CheckpointStore {
        let medium = try createMedium(locator, size: locator.kind == .raw ? nil : size, force: force)
        do { return try CheckpointStore.create(on: medium, options: CreateOptions(force: force)) } catch {
            medium.close()
            throw error
        }
    }

    /// Opens the store.
    func open() throws -> CheckpointStore { try CheckpointStore.open(try openMedium(locator, access: .readWrite)) }

    /// The bare medium, emptied, and where measuring may write.
    func bareMedium() throws -> (medium: any Medium, place: MediumOffset) {
        let store = try makeStore()
        let place = store.geometry.twinOffset.rawValue * 2
        store.close()
        return (try openMedium(locator, access: .readWrite), MediumOffset(place))
    }

    /// A sparse store of `size` beside this one; nil on a device, where there is no place for it.
    func withSparseStore<R>(_ size: ByteCount, _ body: (Locator) throws -> R) throws -> R? {
        guard locator.kind != .raw else { return nil }
        let beside = try Locator(kind: locator.kind, target: locator.target + ".sparse")
        let medium = try createMedium(beside, size: size, force: false)
        registerForRemoval(beside)
        defer {
            try? removeMedium(beside)
            Interruption.forgetTemporaryFile(Self.path(beside))
        }
        try CheckpointStore.create(on: medium).close()
        return try body(beside)
    }

    /// Removes what this has made; on a device, the marks of a store.
    func remove() throws {
        guard isOurs else { return }
        isOurs = false
        defer { Interruption.forgetTemporaryFile(Self.path(locator)) }
        guard locator.kind == .raw else { return try removeMedium(locator) }
        let store = try open()
        let twin = store.geometry.twinOffset
        store.close()
        let medium = try openMedium(locator, access: .readWrite)
        defer { medium.close() }
        let zeros = try BenchMemory(count: Slot.ringLength * Slot.encodedLength, isTouched: true)
        for place in [MediumOffset.zero, twin] { unsafe try medium.write(at: place, zeros.reading) }
        try medium.flush()
    }

    /// Leaves the store where it is.
    func keepStore() {
        isOurs = false
        Interruption.forgetTemporaryFile(Self.path(locator))
    }

    private func registerForRemoval(_ locator: Locator) {
        if locator.kind != .raw { _ = Interruption.makeTemporaryFile(Self.path(locator)) { 0 } }
    }

    private static func path(_ locator: Locator) -> String {
        locator.kind == .ram ? "/dev/shm/" + locator.target : locator.target
    }
}

/// Passes everything on to another medium and counts flushes and writes.
final class CountingMedium: Medium {
    private let inner: any Medium
    private let counts = BenchLock((flushes: 0, writes: 0))

    init(_ inner: any Medium) { self.inner = inner }

    var flushesAndWrites: (flushes: Int, writes: Int) { counts.withLock { $0 } }

    var name: String { inner.name }
    var traits: MediumTraits { inner.traits }
    var size: ByteCount { inner.size }
    var locks: any LockSpace { inner.locks }
    @discardableResult func refreshSize() throws(MediumError) -> ByteCount { try inner.refreshSize() }
    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError) {
        unsafe try inner.read(at: offset, into: buffer)
    }
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError) {
        counts.withLock { $0.writes += 1 }
        unsafe try inner.write(at: offset, bytes)
    }
    func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) { try inner.reserve(at: offset, length) }
    func flush() throws(MediumError) {
        counts.withLock { $0.flushes += 1 }
        try inner.flush()
    }
    func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) { try inner.discard(at: offset, length) }
    func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? {
        try inner.allocatedBytes(at: offset, length)
    }
    func resize(to size: ByteCount) throws(MediumError) { try inner.resize(to: size) }
    func close() { inner.close() }
}
