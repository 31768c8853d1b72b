// Letting the guest run again after a migration.
//
// Invariant: a migration that is on its last steps is waited for, not taken for a refusal: QEMU says "completed" a moment before it
// lets its machine be continued.

import CheckpointCore
import Glibc
import QMP

extension QMPClient {
    private static let finishLimitMilliseconds: Int64 = 30_000
    private static let finishPollMicroseconds: UInt32 = 200

    /// Continues the guest.
    /// - Throws: `.refused` with QEMU's reason, where it is not that a migration is just ending.
    func continueGuest() throws(EngineError) {
        let limit = Clock.nowMicroseconds() + Self.finishLimitMilliseconds * 1000
        var isLastTry = false
        while true {
            do throws(EngineError) {
                try execute("cont")
                return
            } catch {
                guard error.code == .refused, !isLastTry, Clock.nowMicroseconds() < limit else { throw error }
            }
            // It may have ended since it was refused: then the next try tells.
            isLastTry = try execute("query-status")["status"]?.string != "finish-migrate"
            usleep(Self.finishPollMicroseconds)
        }
    }
}
