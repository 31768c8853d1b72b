// What an engine has captured of a machine, apart from the pages that it put into the checkpoint itself.

import CheckpointCore
import MigrationStream
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
    /// From QEMU's first work on it until it had none left.
    var migrationMicroseconds: Int64
    /// Pages that were looked at.
    var pages: PageCount
}

/// The time in which a guest stood still, since 1970, by QEMU's events.
struct Stop: Sendable {
    var beganMicroseconds: Int64
    var endedMicroseconds: Int64
    var lengthMicroseconds: Int64 { endedMicroseconds - beganMicroseconds }
}
