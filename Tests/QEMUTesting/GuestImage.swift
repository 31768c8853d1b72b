// The kernel and the root file system that guests boot.

import Foundation
import Threading

/// What `Tests/Guest/build` makes: see there.
public struct GuestImage: Sendable, Decodable {
    /// Paths of the files.
    public var kernel, initramfs: String
    /// The kernel's command line.
    public var append: String

    private static let built = Lock<GuestImage?>(nil)
    private static let buildLimitSeconds = 300.0

    /// The guest's image, built first when it is not in the cache. Once a process.
    public static func shared() throws -> GuestImage {
        try built.withLock { (built) throws -> GuestImage in
            if let built { return built }
            let folder = try TemporaryFolder()
            let outcome = try RunningTool([], program: program, scratch: folder.path).wait(limitSeconds: buildLimitSeconds)
            guard outcome.exitCode == 0 else { throw GuestTrouble("the guest was not built: \(outcome.errors)") }
            let image = try JSONDecoder().decode(GuestImage.self, from: Data(outcome.output))
            built = image
            return image
        }
    }

    private static let program =
        URL(fileURLWithPath: #filePath).deletingLastPathComponent().deletingLastPathComponent()
        .appendingPathComponent("Guest/build").path
}
