// The thread that starts children which shall end with this process.
//
// Linux ties such a child to the thread that started it, not to the process; so this thread never ends.

import CLinux
import CheckpointCore
import Glibc
import Threading

/// What `ck_spawn` needs, checked.
struct SpawnRequest: Sendable {
    var path: String
    var arguments: [String]
    var inheriting: [(parent: Int32, child: Int32)]
    var flags: UInt32

    /// The child's process id, or a negative error number; and the handle on it.
    struct Result: Sendable { var pid: Int32, handle: Int32 }

    /// Starts the child from this thread.
    func run() -> Result {
        var inherited = inheriting.map { ck_inherited(parent: $0.parent, child: $0.child, moved: -1) }
        let strings = unsafe arguments.map { unsafe strdup($0) }
        defer { for unsafe string in unsafe strings { unsafe free(string) } }
        guard unsafe !strings.contains(where: { unsafe $0 == nil }) else { return Result(pid: -ENOMEM, handle: -1) }
        var result = Result(pid: 0, handle: -1)
        result.pid = unsafe ck_spawn(path, strings + [nil], &inherited, inherited.count, flags, &result.handle)
        return result
    }
}

final class LastingThread: Sendable {
    private struct State: Sendable {
        var isRunning = false
        var isTaken = false
        var request: SpawnRequest?
        var result: SpawnRequest.Result?
    }
    private let state = Lock(State())

    static let shared = LastingThread()

    /// Runs a request on the thread, which the first one starts.
    func spawn(_ request: SpawnRequest) throws(EngineError) -> SpawnRequest.Result {
        state.waitFor { state -> Void? in
            if state.isTaken { return nil }
            state.isTaken = true
            return ()
        }
        defer {
            state.withLock { $0.isTaken = false }
            state.wake()
        }
        let isRunning = state.withLock { state in
            state.request = request
            return state.isRunning
        }
        state.wake()
        if !isRunning {
            guard PlainThread({ self.serve() }) != nil else {
                state.withLock { $0.request = nil }
                throw EngineError(.noMemory, "can't start a thread", place: request.path)
            }
            state.withLock { $0.isRunning = true }
        }
        return state.waitFor { state in
            defer { state.result = nil }
            return state.result
        }
    }

    private func serve() {
        while true {
            let request = state.waitFor { $0.request }
            let result = request.run()
            state.withLock {
                $0.request = nil
                $0.result = result
            }
            state.wake()
        }
    }
}
