// A store for one test.

import CheckpointStore
import Foundation
import Media
import Units

/// A store in a file that goes when the test is over.
package final class ScratchStore: Sendable {
    package let folder: String
    package let store: CheckpointStore

    package init(_ size: ByteCount = .mebibytes(64)) throws {
        folder = NSTemporaryDirectory() + "ckstore-" + UUID().uuidString
        try FileManager.default.createDirectory(
            atPath: folder, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        store = try CheckpointStore.create(on: try createMedium(try Locator(folder + "/store.ck"), size: size, force: false))
    }

    deinit {
        store.close()
        try? FileManager.default.removeItem(atPath: folder)
    }
}
