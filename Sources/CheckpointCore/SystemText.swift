// The text of /proc and /sys.
//
// Invariant: a negative result of a shim is an errno value and always becomes an error here.

import CLinux
import Glibc

/// A file of /proc or /sys, read whole.
package enum SystemText {
    /// More than any such file has, so that a mistake does not take all memory: a process has at most 65,530 mappings by default.
    private static let limit = 256 << 20

    /// The bytes of the file at `path`. Throws `.notFound` when there is no such file or its process has ended.
    package static func read(_ path: String) throws(EngineError) -> [UInt8] {
        let file = OwnedDescriptor(owning: try checked(unsafe ck_open(path, 0), "open it", place: path))
        var text = [UInt8](repeating: 0, count: 1 << 16)
        var used = 0
        while true {
            if used == text.count {
                guard used < limit else { throw EngineError(.protocolViolation, "the file has no end", place: path) }
                text.append(contentsOf: repeatElement(0, count: used))
            }
            // `read` and not a read at an offset: such files are made up while they are read.
            let (got, number) = unsafe text.withUnsafeMutableBytes { bytes in
                let got = unsafe Glibc.read(file.number, bytes.baseAddress! + used, bytes.count - used)
                return (got, errno)
            }
            if got < 0, number == EINTR { continue }
            if got < 0 { throw EngineError(system: "read it", number, place: path) }
            if got == 0 { break }
            used += got
        }
        text.removeSubrange(used...)
        return text
    }

    /// Its lines, without the line feeds.
    package static func lines(_ path: String) throws(EngineError) -> [ArraySlice<UInt8>] {
        try read(path).split(separator: UInt8(ascii: "\n"))
    }
}

extension ArraySlice<UInt8> {
    /// The bytes as text.
    package var text: String { String(decoding: self, as: UTF8.self) }

    /// The fields between blanks.
    package var fields: [ArraySlice<UInt8>] { split { $0 == UInt8(ascii: " ") || $0 == UInt8(ascii: "\t") } }

    /// An unsigned number of nothing but digits; nil for anything else.
    package func number(radix: Int = 10) -> UInt64? {
        guard let first, first != UInt8(ascii: "+"), first != UInt8(ascii: "-") else { return nil }
        return UInt64(text, radix: radix)
    }
}
