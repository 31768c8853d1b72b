// What the parts of this library share.

import Foundation

/// A test's guest could not do what it is for; the text says what and why.
public struct GuestTrouble: Error, CustomStringConvertible {
    /// What went wrong.
    public let description: String

    /// An error with this text.
    public init(_ description: String) { self.description = description }
}

/// The monotonic clock.
public enum Monotonic {
    /// Nanoseconds since some moment before this process began.
    public static func now() -> UInt64 {
        var now = timespec()
        unsafe clock_gettime(CLOCK_MONOTONIC, &now)
        return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
    }
}

/// A folder of its own, removed with the object. Its path is short enough for sockets in it.
public final class TemporaryFolder: Sendable {
    /// Where it is; only this user can look into it.
    public let path: String

    /// Makes the folder.
    public init() throws {
        var template = Array("\(NSTemporaryDirectory())ckg-XXXXXX".utf8CString)
        guard unsafe mkdtemp(&template) != nil else { throw GuestTrouble("no temporary folder: error \(errno)") }
        path = unsafe template.withUnsafeBytes { unsafe String(decoding: $0.dropLast(), as: UTF8.self) }
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    /// The path of `name` in it.
    public func file(_ name: String) -> String { "\(path)/\(name)" }
}
