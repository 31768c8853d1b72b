// What is at the machine's ports.
//
// Invariant: a port without a device swallows what is written and reads as ones, like a PC's.

import CheckpointCore

/// Distributes port accesses to the devices. Thread-safe.
struct MachineDevices: Sendable {
    let serial: SerialPort
    let disks: DiskController

    /// Numbers of `size` bytes, one behind the other, from a processor.
    func output(_ bytes: UnsafeRawBufferPointer, size: Int, to port: UInt16, by processor: Int) {
        for start in stride(from: 0, to: bytes.count, by: size) {
            switch size {
            case 1: _ = unsafe serial.write(bytes[start], to: port)
            case 4:
                let value = unsafe UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: start, as: UInt32.self))
                _ = disks.write(value, to: port, by: processor)
            default: break
            }
        }
    }

    /// Numbers of `size` bytes, one behind the other, for a processor.
    func input(_ bytes: UnsafeMutableRawBufferPointer, size: Int, from port: UInt16, by processor: Int) {
        for start in stride(from: 0, to: bytes.count, by: size) {
            let value = size == 1 ? serial.read(port).map(UInt32.init) : size == 4 ? disks.read(port, by: processor) : nil
            for byte in 0..<size { unsafe bytes[start + byte] = UInt8(truncatingIfNeeded: (value ?? .max) >> (byte * 8)) }
        }
    }

    /// The state of all devices of a paused machine.
    func saved(_ empty: DeviceState) -> DeviceState {
        var devices = empty
        devices.serial = serial.saved
        disks.save(into: &devices)
        return devices
    }
}
