// What a checkpoint's guard process has to know of a ckstore that was killed: a few words in memory that both share.
//
// Invariant: `mayHaveStopped` is set before the command that stops the guest is sent, and cleared after the one that lets it run
// has been answered, so that the guard never leaves a guest stopped that we stopped, nor runs one that somebody else has stopped.

import CLinux
import CheckpointCore
import Glibc

/// Words in a memfd, written by the checkpoint and read by its guard.
@safe public final class GuardState: @unchecked Sendable {
    private let word: UnsafeMutablePointer<UInt32>
    /// To be inherited by the guard.
    public let descriptor: Int32

    private static let mayHaveStoppedBit: UInt32 = 1
    private static let doneBit: UInt32 = 2

    /// Makes new words, all clear.
    public init() throws(EngineError) {
        descriptor = unsafe ck_open_anonymous("ckstore-guard", false)
        if descriptor < 0 { throw EngineError(system: "create shared memory", -descriptor) }
        if ftruncate(descriptor, 4096) != 0 { throw EngineError(system: "create shared memory", errno) }
        unsafe word = try Self.map(descriptor)
    }

    /// The words that another process made.
    public init(inherited descriptor: Int32) throws(EngineError) {
        self.descriptor = descriptor
        unsafe word = try Self.map(descriptor)
    }

    deinit {
        unsafe munmap(word, 4096)
        ck_close(descriptor)
    }

    private static func map(_ descriptor: Int32) throws(EngineError) -> UnsafeMutablePointer<UInt32> {
        let address = unsafe mmap(nil, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0)
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
}
