// What an engine has captured of a machine, apart from the pages that it put into the checkpoint itself.

import CheckpointCore
import MigrationStream
import QMP
import Units

/// One machine's memory and device state at one instant.
struct Captured: Sendable {
    var engine: MachineRecord.Engine
    var machineType: String
    var blocks: [StreamRAMBlock]
    /// Says that the machine runs.
    var deviceState: [UInt8]
    /// When the guest stopped and when it ran again, by QEMU's clock.
    var stop: Stop
    /// How long the guest stood still besides.
    var otherStopsMicroseconds: Int64
    /// From QEMU's first work on it until it had none left.
    var migrationMicroseconds: Int64
    /// Pages that were looked at.
    var pages: PageCount
}

/// The time in which a guest stood still, since 1970, by QEMU's events.
struct Stop: Sendable {
    var beganMicroseconds: Int64
    var endedMicroseconds: Int64
    /// The first stop behind the event `sequence`, and its end. The events are there already, or about to be.
    static func after(_ sequence: Int, _ qmp: QMPClient) throws(EngineError) -> Stop {
        let began = try qmp.waitForEvent(after: sequence, timeoutMilliseconds: eventTimeoutMilliseconds) { $0.name == "STOP" }
        let ended = try qmp.waitForEvent(after: began.sequence, timeoutMilliseconds: eventTimeoutMilliseconds) { $0.name == "RESUME" }
        return Stop(beganMicroseconds: began.timestampMicroseconds, endedMicroseconds: ended.timestampMicroseconds)
    }
    private static let eventTimeoutMilliseconds = 30_000

    var lengthMicroseconds: Int64 { endedMicroseconds - beganMicroseconds }
}
