// What a store stands on: a linear run of bytes that can be read, written, flushed and locked.
//
// Invariants that every medium keeps:
// - No pointer into a medium leaves it, neither writable (a fault-injecting medium must see every
//   write) nor readable (bytes are copied out first and judged in the private copy).
// - A device error, a truncated file or a mapping that faults is a thrown `MediumError`, never a
//   signal and never invented bytes.
// - `write` promises nothing about durability; `flush` makes everything written before it durable,
//   including what other handles and processes have written to the same medium.

import Units

/// A store medium: a raw device, a file, shared memory, flash or persistent memory.
///
/// Thread-safe: `read`, `write`, `reserve`, `discard` and `flush` may be called from many threads at
/// once; overlapping concurrent writes are the caller's mistake.
public protocol Medium: AnyObject, Sendable {
    /// The locator this medium was opened by, for messages.
    var name: String { get }
    /// What the medium is like: constant while it is open.
    var traits: MediumTraits { get }
    /// The capacity when last looked at. Another process may have grown it: `refreshSize` looks again.
    var size: ByteCount { get }
    /// Looks at the capacity again and extends the mapping. Returns the new capacity.
    @discardableResult func refreshSize() throws(MediumError) -> ByteCount
    /// Copies `buffer.count` bytes from `offset` into `buffer`, turning a fault of the mapping into
    /// an error. Sees every write that has returned, durable or not, through any handle.
    func read(at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(MediumError)
    /// Runs `routine(result, bytes, length, 0)` over a range without copying it first, turning a fault of the mapping into an
    /// error: for checksums of what nobody is going to use. The routine must own nothing and keep no pointer; what it leaves in
    /// `result` is undefined when this throws.
    func scan(
        at offset: MediumOffset, _ length: ByteCount, into result: UnsafeMutableRawPointer, _ routine: MediumScan
    ) throws(MediumError)
    /// Writes all of `bytes` at `offset`. Fastest when offset, length and address are multiples of
    /// `traits.directAlignment`. Not durable until `flush` returns.
    func write(at offset: MediumOffset, _ bytes: UnsafeRawBufferPointer) throws(MediumError)
    /// Makes sure that later writes to this range can't fail for lack of space, where the medium can
    /// promise that (`traits.reservesSpace`). Throws `.noSpace` when there is none.
    func reserve(at offset: MediumOffset, _ length: ByteCount) throws(MediumError)
    /// Makes everything that was written before durable. After it has thrown, nothing may be assumed
    /// about any earlier write that no flush has covered.
    func flush() throws(MediumError)
    /// Says that the content of this range is no longer needed. It may read as anything afterwards.
    /// A hint: does nothing where the medium has no such thing.
    func discard(at offset: MediumOffset, _ length: ByteCount) throws(MediumError)
    /// How many bytes of storage the content of this range takes, as far as the medium can tell; nil where it can't. Space that was only
    /// reserved may count or not.
    func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount?
    /// Changes the capacity. Throws `.unsupported` for media of fixed size.
    func resize(to size: ByteCount) throws(MediumError)
    /// This handle's locks on the medium, shared by nobody else.
    var locks: any LockSpace { get }
    /// Releases mapping, descriptors and locks. Using the medium afterwards is a programmer's mistake.
    func close()
}

/// A C function that reads bytes and leaves what it found out about them at its first argument.
public typealias MediumScan =
    @convention(c) (UnsafeMutableRawPointer?, UnsafeRawPointer?, Int, UInt32) -> UnsafeMutableRawPointer?

extension Medium {
    /// Can't tell: right for every medium.
    public func allocatedBytes(at offset: MediumOffset, _ length: ByteCount) throws(MediumError) -> ByteCount? { nil }

    /// By way of a copy: right for every medium, the fastest for none that is mapped.
    public func scan(
        at offset: MediumOffset, _ length: ByteCount, into result: UnsafeMutableRawPointer, _ routine: MediumScan
    ) throws(MediumError) {
        let copy = UnsafeMutableRawBufferPointer.allocate(byteCount: length.int, alignment: 64)
        defer { unsafe copy.deallocate() }
        try unsafe read(at: offset, into: copy)
        _ = unsafe routine(result, UnsafeRawPointer(copy.baseAddress), copy.count, 0)
    }
}

/// Which of the four kinds a medium is.
public enum MediumKind: String, Sendable, Codable, CaseIterable {
    case raw, file, ram, flash
}

/// What a medium is like.
public struct MediumTraits: Sendable {
    /// The kind, as in the locator.
    public var kind: MediumKind
    /// True when opened for reading only: every write throws `.readOnly`.
    public var isReadOnly: Bool
    /// True when the bytes survive the end of all processes and, after `flush`, a power cut.
    public var isPersistent: Bool
    /// True when the mapping is persistent memory (libpmem's `is_pmem`): flush is a drain.
    public var isPersistentMemory: Bool
    /// True when a range that `reserve` accepted can't run out of space later.
    public var reservesSpace: Bool
    /// Writes aligned to this many bytes (offset, length, address) take the fastest way; a power of two.
    public var directAlignment: Int
    /// The unit in which the medium erases, or 0 when that is not known.
    public var eraseUnit: ByteCount
    /// The way writes are made, for people: "direct", "buffered", "pmem", "memory", and for memory the
    /// pages that it is made of where they are huge: "memory, huge pages".
    public var writeMethod: String

    public init(
        kind: MediumKind, isReadOnly: Bool, isPersistent: Bool, isPersistentMemory: Bool, reservesSpace: Bool,
        directAlignment: Int, eraseUnit: ByteCount, writeMethod: String
    ) {
        self.kind = kind
        self.isReadOnly = isReadOnly
        self.isPersistent = isPersistent
        self.isPersistentMemory = isPersistentMemory
        self.reservesSpace = reservesSpace
        self.directAlignment = directAlignment
        self.eraseUnit = eraseUnit
        self.writeMethod = writeMethod
    }
}

/// A range of lock bytes. Locks live in an address space of their own, far behind any data.
public struct LockRange: Hashable, Sendable {
    /// The first lock byte; at most 2^62 - 1.
    public var start: UInt64
    /// How many bytes; at least 1.
    public var count: UInt64
    public init(start: UInt64, count: UInt64 = 1) {
        self.start = start
        self.count = count
    }
}

/// Whether a lock excludes everybody or writers only.
public enum LockMode: Sendable { case shared, exclusive }

/// Who holds a lock, as far as the system says.
public struct LockHolder: Hashable, Sendable, CustomStringConvertible {
    /// The process, or nil when it can't be seen.
    public var process: Int32?
    /// The command's name, or an empty string.
    public var command: String
    public init(process: Int32?, command: String) {
        self.process = process
        self.command = command
    }
    public var description: String {
        process.map { "process \($0)" + (command.isEmpty ? "" : " (\(command))") } ?? "an unknown process"
    }
}

/// Advisory locks on byte ranges, owned by one handle and gone with it, however its process ends.
///
/// Locks of one handle never conflict with each other: a handle's own threads need their own
/// exclusion. Thread-safe.
public protocol LockSpace: AnyObject, Sendable {
    /// Takes the lock if nobody else holds a conflicting one. Returns false otherwise.
    /// Exclusive locks need a handle that can write. Taking a range again changes its mode.
    func tryLock(_ range: LockRange, _ mode: LockMode) throws(MediumError) -> Bool
    /// Waits for the lock, at most `timeout` (nil: for ever). Throws `.busy`, naming the holder, when
    /// the time is over.
    func lock(_ range: LockRange, _ mode: LockMode, timeout: Duration?) throws(MediumError)
    /// Gives up this handle's locks on the range; harmless where there are none.
    func unlock(_ range: LockRange) throws(MediumError)
    /// True when no *other* handle holds a lock in the range that conflicts with `mode`.
    func isFree(_ range: LockRange, for mode: LockMode) throws(MediumError) -> Bool
    /// Who else holds locks in the range; empty when nobody or when the system does not say.
    func holders(of range: LockRange) -> [LockHolder]
}
