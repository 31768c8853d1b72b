// Progress of long work, for people who watch: how far, how fast, how long to go.

import Glibc
import Synchronization
import Units

/// Shows progress on one line of standard error, a few times a second. Thread-safe.
final class Progress: Sendable {
    private struct State {
        var task = ""
        /// Bytes of earlier tasks.
        var before: UInt64 = 0
        var current: UInt64 = 0
        /// Bytes of all tasks; nil when nobody knows.
        var total: ByteCount?
        var lastShown: Double
        var hasLine = false
    }
    private let state: Mutex<State>
    private let isShown: Bool
    private let start: Double
    private static let secondsBetween = 0.2

    /// - Parameter total: nil when nobody knows.
    init(isShown: Bool, total: ByteCount?) {
        self.isShown = isShown
        start = Self.seconds()
        state = Mutex(State(total: total, lastShown: start))
    }

    var elapsedSeconds: Double { Self.seconds() - start }

    /// Goes on to the next task; what the one before has done stays counted.
    func begin(_ task: String) {
        state.withLock { state in
            state.before += state.current
            state.current = 0
            state.task = task
        }
    }

    /// What there is to do in all turns out only while it is done.
    func expect(_ total: ByteCount?) { state.withLock { $0.total = total } }

    /// The current task has done this much by now. Calls may come out of order.
    func update(_ done: ByteCount) {
        guard isShown else { return }
        state.withLock { state in
            state.current = max(state.current, done.rawValue)
            let now = Self.seconds()
            guard now - state.lastShown >= Self.secondsBetween else { return }
            state.lastShown = now
            state.hasLine = true
            standardError("\r\(line(state, elapsed: now - start))\u{1B}[K")
        }
    }

    /// Removes the line, so that something else can be printed.
    func clear() {
        state.withLock { state in
            if state.hasLine { standardError("\r\u{1B}[K") }
            state.hasLine = false
        }
    }

    private func line(_ state: State, elapsed: Double) -> String {
        let done = state.before + state.current
        let rate = Double(done) / elapsed
        var text = state.task.isEmpty ? "" : "\(printable(state.task)): "
        text += "\(done / UInt64(pageSize)) pages, \(readable(ByteCount(done)))"
        if let total = state.total, total > .zero {
            text += " of \(readable(total)) (\(done * 100 / max(done, total.rawValue)) %)"
        }
        text += ", \(readable(bytes: rate))/s"
        if let total = state.total, total.rawValue > done, rate > 0 {
            text += ", \(Self.duration(Double(total.rawValue - done) / rate)) left"
        }
        return text
    }

    private static func duration(_ seconds: Double) -> String {
        let whole = Int(seconds.rounded(.up))
        if whole < 60 { return "\(whole) s" }
        return whole < 3600 ? "\(whole / 60) min \(whole % 60) s" : "\(whole / 3600) h \(whole % 3600 / 60) min"
    }

    private static func seconds() -> Double {
        var now = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &now)
        return Double(now.tv_sec) + Double(now.tv_nsec) / 1e9
    }
}
