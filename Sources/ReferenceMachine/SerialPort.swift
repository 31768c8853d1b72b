// The machine's serial port: what the guest prints, and what is sent to it.
//
// Invariants:
// - A byte that the guest has written is in the outside world at once: a restored machine does not send it again.
// - Input that the guest has not read is part of the device state.

import CheckpointCore
import Threading
import Units

/// A port at 0x3f8 without interrupts, always ready to send. Thread-safe.
final class SerialPort: Sendable {
    static let maximumInputLength = 1 << 16
    /// Output beyond it is counted and dropped.
    static let maximumOutputLength = 16 << 20

    private let state: Lock<State>
    private struct State {
        var saved: SerialState
        var output: [UInt8] = []
    }

    private static let data: UInt16 = 0x3f8
    private static let lineStatus: UInt16 = 0x3fd
    private static let dataReady: UInt8 = 0x01
    private static let readyToSend: UInt8 = 0x60

    init(_ saved: SerialState) { state = Lock(State(saved: saved)) }

    var saved: SerialState { state.withLock { $0.saved } }
    /// What was sent since this object was made.
    var output: [UInt8] { state.withLock { $0.output } }

    /// Hands bytes to the guest. False when it has not read enough of what it was sent before.
    func send(_ bytes: [UInt8]) -> Bool {
        state.withLock { state in
            guard bytes.count <= Self.maximumInputLength - state.saved.input.count else { return false }
            state.saved.input += bytes
            return true
        }
    }

    /// Takes a byte from the guest; false when the port is not one of this device.
    func write(_ byte: UInt8, to port: UInt16) -> Bool {
        guard port == Self.data else { return Self.owns(port) }
        state.withLock { state in
            state.saved.sentCount += ByteCount(1)
            if state.output.count < Self.maximumOutputLength { state.output.append(byte) }
        }
        return true
    }

    /// A byte for the guest; nil when the port is not one of this device.
    func read(_ port: UInt16) -> UInt8? {
        guard Self.owns(port) else { return nil }
        return state.withLock { state in
            switch port {
            case Self.data: state.saved.input.isEmpty ? 0 : state.saved.input.removeFirst()
            case Self.lineStatus: Self.readyToSend | (state.saved.input.isEmpty ? 0 : Self.dataReady)
            default: 0
            }
        }
    }

    private static func owns(_ port: UInt16) -> Bool { (data..<data + 8).contains(port) }
}
