// Files of a test, and the checksum that formats use.

import Foundation
import PageCodec

/// A directory that is gone with its owner.
final class TemporaryFolder: Sendable {
    private let url = FileManager.default.temporaryDirectory.appending(path: "ckstore-disks-\(UUID().uuidString)")

    init() throws {
        try FileManager.default.createDirectory(at: url, withIntermediateDirectories: true, attributes: [.posixPermissions: 0o700])
    }

    deinit { try? FileManager.default.removeItem(at: url) }

    func path(_ name: String) -> String { url.appending(path: name).path }
}

/// H128 as it is stored.
func checksum(_ bytes: [UInt8]) -> [UInt8] {
    let hash = unsafe bytes.withUnsafeBytes { unsafe hash128($0) }
    return [hash.low, hash.high].flatMap { half in (0..<8).map { UInt8(truncatingIfNeeded: half >> UInt64($0 * 8)) } }
}
