// Ending by a signal without leaving anything behind.
//
// Invariants:
// - Signals are taken by one thread in `sigwait`, so that what they do is ordinary code.
// - A signal that was ignored when the process started (nohup) stays ignored.
// - Ending at once is safe at any time: a checkpoint without its commit is not there, and files without
//   their names are gone; files with temporary names are removed first.

import CheckpointStore
import Glibc
import Synchronization

/// What SIGINT, SIGTERM and SIGHUP do while a long command runs.
enum Interruption {
    private struct State {
        var received: Int32?
        /// What to do instead of ending at once.
        var cancel: (@Sendable () -> Void)?
        /// Who takes every signal, so that none ends this process.
        var receiver: (@Sendable (Int32) -> Void)?
        var temporaryFiles: Set<String> = []
    }
    private static let state = Mutex(State())

    /// The signal that came, if one did.
    static var received: Int32? { state.withLock { $0.received } }

    /// Starts to take signals: each ends the process, until `cancel` is set. Call before any thread is started.
    static func begin() {
        var signals = sigset_t()
        unsafe sigemptyset(&signals)
        for number in [SIGINT, SIGTERM, SIGHUP] {
            var action = sigaction()
            unsafe sigaction(number, nil, &action)
            let isIgnored = unsafe unsafeBitCast(action.__sigaction_handler.sa_handler, to: Int.self) == 1
            if !isIgnored { unsafe sigaddset(&signals, number) }
        }
        unsafe pthread_sigmask(SIG_BLOCK, &signals, nil)
        var thread = pthread_t()
        let box = unsafe Unmanaged.passRetained(SignalSet(signals)).toOpaque()
        let status = unsafe pthread_create(
            &thread, nil,
            { argument in
                unsafe Interruption.takeSignals(Unmanaged<SignalSet>.fromOpaque(argument!).takeRetainedValue().signals)
            }, box)
        // Without the thread the signals do what they do by default.
        if status == 0 { pthread_detach(thread) } else { unsafe pthread_sigmask(SIG_UNBLOCK, &signals, nil) }
    }

    /// Lets the first signal call `action`, which makes the command throw; a second one ends at once. nil: the first does.
    static func setCancel(_ action: (@Sendable () -> Void)?) { state.withLock { $0.cancel = action } }

    /// Hands every signal on to `receiver`, for as long as the process lives; none ends it any more.
    static func setReceiver(_ receiver: @escaping @Sendable (Int32) -> Void) { state.withLock { $0.receiver = receiver } }

    /// Makes a file of a temporary name with `make`, so that it is removed when a signal ends the process.
    static func makeTemporaryFile(_ path: String, _ make: () -> Int32) -> Int32 {
        state.withLock { state in
            let descriptor = make()
            if descriptor >= 0 { state.temporaryFiles.insert(path) }
            return descriptor
        }
    }

    /// The file has its name or is gone.
    static func forgetTemporaryFile(_ path: String) { state.withLock { _ = $0.temporaryFiles.remove(path) } }

    private final class SignalSet {
        let signals: sigset_t
        init(_ signals: sigset_t) { self.signals = signals }
    }

    private static func takeSignals(_ signals: sigset_t) -> Never {
        var signals = signals
        while true {
            var number: Int32 = 0
            guard unsafe sigwait(&signals, &number) == 0 else { continue }
            if let receiver = state.withLock({ $0.receiver }) {
                receiver(number)
                continue
            }
            let cancel = state.withLock { state in
                defer { if state.received == nil { state.received = number } }
                return state.received == nil ? state.cancel : nil
            }
            if let cancel { cancel() } else { endNow(number) }
        }
    }

    private static func endNow(_ number: Int32) -> Never {
        // The lock stays held: no temporary file can be made behind our back.
        state.withLock { state in
            for path in state.temporaryFiles { unsafe unlink(path) }
            let error = StoreError(.cancelled, "cancelled by a signal")
            Failure.report(error.description, FailureObject(error))
            _exit(128 + number)
        }
    }
}
