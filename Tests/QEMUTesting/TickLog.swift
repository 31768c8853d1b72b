// The guest's sign of life, as the host sees it: when it came.

import CLinux
import Threading

/// Notes when bytes of the guest's ticker arrive, on a thread of its own.
///
/// Invariant: it reads as long as the guest lives: QEMU waits for whoever doesn't.
public final class TickLog: Sendable {
    private let times = Lock<[UInt64]>([])
    private let event: Int32

    /// Takes `descriptor` over.
    init(descriptor: Int32) throws {
        let event = ck_open_event()
        guard event >= 0 else { throw GuestTrouble("no event descriptor: error \(event)") }
        self.event = event
        let thread = PlainThread { [times] in
            while Self.read(descriptor, event, times) {}
            ck_close(descriptor)
            ck_close(event)
        }
        guard thread != nil else { throw GuestTrouble("no thread for the ticks") }
    }

    /// Ends the thread, which closes the descriptors.
    deinit { ck_signal_event(event) }

    private static func read(_ descriptor: Int32, _ event: Int32, _ times: Lock<[UInt64]>) -> Bool {
        guard ck_wait(descriptor, Int32(CK_READABLE), event, -1) == Int32(CK_READABLE) else { return false }
        let now = Monotonic.now()
        var count = 0
        _ = unsafe [UInt8](unsafeUninitializedCapacity: 4096) { target, initialized in
            count = unsafe ck_receive(descriptor, target.baseAddress, target.count)
            initialized = max(0, count)
        }
        guard count > 0 else { return count == -11 }
        times.withLock { $0.append(now) }
        return true
    }

    /// The longest time without a tick between two moments (`Monotonic.now()`), in microseconds; both ends count as ticks.
    public func longestGapMicroseconds(since start: UInt64, until end: UInt64 = Monotonic.now()) -> UInt64 {
        let ticks = times.withLock { $0.filter { $0 > start && $0 < end } }
        var (last, longest): (UInt64, UInt64) = (start, 0)
        for tick in ticks + [end] {
            longest = max(longest, tick - last)
            last = tick
        }
        return longest / 1000
    }

    /// How often ticks came between two moments.
    public func count(since start: UInt64, until end: UInt64 = Monotonic.now()) -> Int {
        times.withLock { $0.count { $0 > start && $0 < end } }
    }

    /// When the first tick came: nanoseconds of `Monotonic`.
    public var first: UInt64? { times.withLock { $0.first } }
}
