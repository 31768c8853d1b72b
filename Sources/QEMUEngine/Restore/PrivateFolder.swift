// A folder for a socket that only this user can reach.

import CheckpointCore
import Glibc

/// A folder that only this user can enter. `remove` is its maker's to call.
struct PrivateFolder: Sendable {
    let path: String

    /// - Throws: `.noSpace`, `.permission`, `.ioFailed`.
    init() throws(EngineError) {
        let root = unsafe (getenv("XDG_RUNTIME_DIR") ?? getenv("TMPDIR")).map { unsafe String(cString: $0) } ?? "/tmp"
        var template = Array("\(root)/ckstore-XXXXXX".utf8CString)
        guard unsafe mkdtemp(&template) != nil else { throw EngineError(system: "make a private folder", errno, place: root) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }

    /// Removes it, which must be empty. One that can't be removed is in nobody's way.
    func remove() { unsafe rmdir(path) }
}
