// Whose monitor a socket is, without talking to it.

import CheckpointCore

extension QMPClient {
    /// The process that listens at the socket `path`. Works also when its monitor hangs or is taken.
    /// - Throws: `.notFound`, `.connection`, `.permission`.
    public static func processID(listeningAt path: String, timeoutMilliseconds: Int = 5000) throws(EngineError) -> Int32 {
        try MonitorSocket.connect(path: path, Deadline(milliseconds: timeoutMilliseconds)).processID
    }
}
