// What a checkpoint's guard process has to know of a ckstore that was killed: a few words in memory that both share, and the names of
// files that would be left if the machine ended as well.
//
// Invariants:
// - Names are there before the files are.
// - `mayHaveStopped` is set before the command that stops the guest is sent, and cleared after the one that lets it run
//   has been answered, so that the guard never leaves a guest stopped that we stopped, nor runs one that somebody else has stopped.

import CLinux
import CheckpointCore
import DiskCapture
import FoundationEssentials
import Glibc

/// Words in a memfd, written by the checkpoint and read by its guard.
@safe public final class GuardState: @unchecked Sendable {
    private let word: UnsafeMutablePointer<UInt32>
    private static let mappedBytes = 65536
    /// Behind the words: the length of the names as JSON, and the names.
    private static let namesOffset = 64
    /// To be inherited by the guard.
    public let descriptor: Int32

    private static let mayHaveStoppedBit: UInt32 = 1
    private static let doneBit: UInt32 = 2

    /// Makes new words, all clear.
    public init() throws(EngineError) {
        descriptor = unsafe ck_open_anonymous("ckstore-guard", false)
        if descriptor < 0 { throw EngineError(system: "create shared memory", -descriptor) }
        if ftruncate(descriptor, off_t(Self.mappedBytes)) != 0 { throw EngineError(system: "create shared memory", errno) }
        unsafe word = try Self.map(descriptor)
    }

    /// The words that another process made.
    public init(inherited descriptor: Int32) throws(EngineError) {
        self.descriptor = descriptor
        unsafe word = try Self.map(descriptor)
    }

    deinit {
        unsafe munmap(word, Self.mappedBytes)
        ck_close(descriptor)
    }

    private static func map(_ descriptor: Int32) throws(EngineError) -> UnsafeMutablePointer<UInt32> {
        let address = unsafe mmap(nil, mappedBytes, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
        guard let address = unsafe address, unsafe address != MAP_FAILED else { throw EngineError(system: "map shared memory", errno) }
        return unsafe address.bindMemory(to: UInt32.self, capacity: 1)
    }

    /// True from before the guest is stopped by us until after it runs again.
    public var mayHaveStopped: Bool {
        get { unsafe word.pointee & Self.mayHaveStoppedBit != 0 }
        set { set(Self.mayHaveStoppedBit, newValue) }
    }

    /// True when the guard has nothing to do any more.
    public var isDone: Bool {
        get { unsafe word.pointee & Self.doneBit != 0 }
        set { set(Self.doneBit, newValue) }
    }

    /// One writer at a time and a kill in between as the only reader's moment: an ordinary store is enough.
    private func set(_ bit: UInt32, _ value: Bool) {
        unsafe word.pointee = value ? unsafe word.pointee | bit : unsafe word.pointee & ~bit
    }

    /// Overlays that the checkpoint makes.
    /// - Throws: `.invalidInput` when they are more than there is room for.
    func note(overlays: [LostMachine.Overlay]) throws(EngineError) {
        let text: Data
        do { text = try JSONEncoder().encode(overlays) } catch { preconditionFailure("paths can be encoded") }
        guard Self.namesOffset + 4 + text.count <= Self.mappedBytes else {
            throw EngineError(.invalidInput, "the paths of \(overlays.count) overlays are too long", remedy: "Name a folder for overlays.")
        }
        let place = unsafe UnsafeMutableRawPointer(word) + Self.namesOffset
        for (index, byte) in text.enumerated() { unsafe place.storeBytes(of: byte, toByteOffset: 4 + index, as: UInt8.self) }
        unsafe place.storeBytes(of: UInt32(text.count), as: UInt32.self)
    }

    /// The overlays that were noted.
    func overlays() throws(EngineError) -> [LostMachine.Overlay] {
        let place = unsafe UnsafeRawPointer(word) + Self.namesOffset
        let count = Int(unsafe place.load(as: UInt32.self))
        guard count > 0 else { return [] }
        guard Self.namesOffset + 4 + count <= Self.mappedBytes else {
            throw EngineError(.corrupt, "the checkpoint's note for its guard is damaged")
        }
        let text = unsafe Data(bytes: place + 4, count: count)
        do { return try JSONDecoder().decode([LostMachine.Overlay].self, from: text) } catch {
            throw EngineError(.corrupt, "the checkpoint's note for its guard is damaged")
        }
    }
}
