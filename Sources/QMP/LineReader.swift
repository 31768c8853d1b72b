// Bytes to lines.

import CheckpointCore

/// Cuts what a socket brings into messages, one on each line.
struct LineReader {
    private var buffer: [UInt8] = []
    /// Where the next line begins.
    private var start = 0
    /// How far the next line's end has been looked for.
    private var searched = 0

    /// Waits for the next line that is not empty, without its end; nil when interrupted or at the connection's end.
    /// - Parameter ended: set at the connection's end. A line that it cut off is dropped.
    mutating func next(_ socket: MonitorSocket, _ deadline: Deadline, ended: inout Bool) throws(EngineError) -> ArraySlice<UInt8>? {
        while true {
            if let end = buffer[searched...].firstIndex(of: UInt8(ascii: "\n")) {
                var line = buffer[start..<end]
                // Not removeLast, which would copy: the buffer is shared.
                if line.last == UInt8(ascii: "\r") { line = line.dropLast() }
                start = end + 1
                searched = start
                if line.isEmpty { continue }
                return line
            }
            buffer.removeSubrange(..<start)
            (start, searched) = (0, buffer.count)
            if buffer.count > MonitorSocket.lineLimit {
                throw EngineError(
                    .protocolViolation, "a message is longer than \(MonitorSocket.lineLimit) bytes", place: socket.place)
            }
            switch try socket.receive(into: &buffer, deadline) {
            case .bytes: continue
            case .end: ended = true; return nil
            case .interrupted: return nil
            }
        }
    }
}
