// Threads of our own and not tasks: the work here blocks in system calls and page faults, which would
// stall the cooperative pool.

import Glibc

/// How many cores this process may use.
public func availableCores() -> Int { max(1, Int(sysconf(Int32(_SC_NPROCESSORS_ONLN)))) }

/// A thread that runs one closure and can be waited for.
@safe public final class PlainThread: @unchecked Sendable {
    private final class Start {
        let body: @Sendable () -> Void
        init(_ body: @escaping @Sendable () -> Void) { self.body = body }
    }
    private let id: pthread_t

    /// Starts a thread; nil when the system has none to give.
    public init?(_ body: @escaping @Sendable () -> Void) {
        let start = unsafe Unmanaged.passRetained(Start(body))
        var id = pthread_t()
        let status = unsafe pthread_create(
            &id, nil,
            { pointer in
                unsafe Unmanaged<Start>.fromOpaque(pointer!).takeRetainedValue().body()
                return nil
            }, start.toOpaque())
        guard status == 0 else {
            unsafe start.release()
            return nil
        }
        self.id = id
    }

    /// Waits until the closure has returned. Call it exactly once.
    public func join() { pthread_join(id, nil) }
}
