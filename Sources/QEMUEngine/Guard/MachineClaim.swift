// Who is at work on a machine: one checkpoint or rescue at a time, whatever monitors it has.
//
// Invariant: a claim ends with the last process that holds it, so that none is left after a kill: the checkpoint and its guard hold one together.

import CLinux
import CheckpointCore
import Glibc
import LiveMemory

/// A claim on the machine of one process, by a local socket's name that only one can have.
public final class MachineClaim: Sendable {
    /// To be inherited by the guard.
    let descriptor: Int32

    /// Claims the machine.
    /// - Throws: `.busy` when somebody else has it; `.unsupported` when its process can't be seen from here.
    public init(processID: Int32) throws(EngineError) {
        guard processID > 0 else {
            throw EngineError(
                .unsupported, "the machine's process can't be seen from here", remedy: "Run ckstore in a process namespace that has it.")
        }
        let process = try TargetProcess(pid: processID)
        let result = unsafe ck_bind_name("ckstore-machine-\(processID)-\(process.startTime)")
        guard result >= 0 else {
            guard result == -EADDRINUSE else { throw EngineError(system: "claim the machine", -result) }
            throw EngineError(
                .busy, "another ckstore is at work on this machine (process \(processID))",
                remedy: "Wait until its checkpoint, or the guard of one that was killed, has come to its end.")
        }
        descriptor = result
    }

    deinit { ck_close(descriptor) }
}
