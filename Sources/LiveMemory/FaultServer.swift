// The two threads behind copy on write: one answers faults, one copies everything else.
//
// Invariants:
// - A fault's page is released as soon as it is settled, by whoever settled it or by the server.
// - An error is kept for the caller and never keeps a page from being released.

import CLinux
import CLiveMemory
import CheckpointCore
import Glibc
import Threading
import Units

final class FaultServer: Sendable {
    let userfault: Userfault
    private let block: SharedMemoryBlock
    private let stopEvent: OwnedDescriptor
    private let state = Lock(State())

    private struct State {
        var originals: OriginalPages?
        /// Units below this are settled and released.
        var copied = 0
        var failure: EngineError?
        var isStopping = false
        var threads: [PlainThread] = []
    }

    /// Starts answering faults.
    init(_ block: SharedMemoryBlock, _ userfault: Userfault) throws(EngineError) {
        self.block = block
        self.userfault = userfault
        stopEvent = OwnedDescriptor(owning: try checked(ck_open_event(), "make an event"))
        // The thread keeps this object until `stop`.
        try start { $0.answerFaults() }
    }

    private func start(_ body: @escaping @Sendable (FaultServer) -> Void) throws(EngineError) {
        guard let thread = PlainThread({ body(self) }) else { throw EngineError(.noMemory, "can't start a thread") }
        state.withLock { $0.threads.append(thread) }
    }

    /// Which pages faults are about from now on.
    func serve(_ originals: OriginalPages) { state.withLock { $0.originals = originals } }

    /// Ends both threads. False when that was done before.
    func stop() -> Bool {
        let threads: [PlainThread]? = state.withLock { state in
            if state.isStopping { return nil }
            state.isStopping = true
            return state.threads
        }
        guard let threads else { return false }
        state.wake()
        _ = ck_signal_event(stopEvent.number)
        for thread in threads { thread.join() }
        return true
    }

    private func record(_ error: EngineError) {
        state.withLock { $0.failure = $0.failure ?? error }
        state.wake()
    }

    // MARK: Faults

    private func answerFaults() {
        while true {
            do throws(EngineError) {
                let ready = try checked(ck_wait(userfault.descriptor.number, Int32(CK_READABLE), stopEvent.number, -1), "wait for faults")
                if ready & Int32(CK_EVENT) != 0 { return }
                try answerWaitingFaults()
            } catch {
                record(error)
                return releaseAll()
            }
        }
    }

    /// Takes all protection off, since nobody will answer faults any more.
    private func releaseAll() {
        for range in state.withLock({ $0.originals })?.covered.ranges ?? [] { try? userfault.unregister(block.addresses(of: range)) }
    }

    private func answerWaitingFaults() throws(EngineError) {
        var addresses = InlineArray<16, UInt64>(repeating: 0)
        var span = addresses.mutableSpan
        let count = unsafe span.withUnsafeMutableBufferPointer {
            unsafe ck_uffd_read(userfault.descriptor.number, $0.baseAddress!, Int32($0.count))
        }
        try checked(count, "read faults", place: block.process.place)
        guard count > 0, let originals = state.withLock({ $0.originals }) else { return }
        for index in 0..<Int(count) {
            guard let page = block.page(at: TargetAddress(addresses[index])), let unit = originals.unit(of: page) else {
                throw EngineError(.protocolViolation, "a fault at an address that is not protected", place: block.process.place)
            }
            do throws(EngineError) { try originals.keep(unit..<unit + 1) } catch { record(error) }
            // Otherwise the copier is at it, and releases it.
            if originals.isSettled(unit) { try release(unit..<unit + 1, originals) }
        }
    }

    private func release(_ units: Range<Int>, _ originals: OriginalPages) throws(EngineError) {
        try userfault.unprotect(block.addresses(of: originals.pages(ofUnits: units)))
    }

    // MARK: Copying

    /// Starts copying all pages, in pieces.
    func startCopying(_ originals: OriginalPages, piece: ByteCount) throws(EngineError) {
        try start { server in
            do throws(EngineError) {
                for units in originals.pieces(of: piece) {
                    if server.state.withLock({ $0.isStopping }) { return }
                    try originals.keep(units)
                    originals.waitUntilSettled(units)
                    try server.release(units, originals)
                    server.state.withLock { $0.copied = units.upperBound }
                    server.state.wake()
                }
            } catch { server.record(error) }
        }
    }

    /// Waits until a unit and all before it have been copied. Throws the first error of either thread.
    func waitUntilCopied(throughUnit unit: Int) throws(EngineError) {
        try state.waitFor { (state) throws(EngineError) in
            if let failure = state.failure { throw failure }
            return state.copied > unit ? () : nil
        }
    }
}
