// Loop devices and mounts for tests, gone with their objects.

import Foundation

private func run(_ tool: String, _ arguments: [String]) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [tool] + arguments
    var environment = ProcessInfo.processInfo.environment
    environment["PATH"] = (environment["PATH"] ?? "") + ":/usr/sbin:/sbin"
    process.environment = environment
    let output = Pipe()
    process.standardOutput = output
    try process.run()
    let text = output.fileHandleForReading.readDataToEndOfFile()
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw TestFailure("\(tool) \(arguments) ends with \(process.terminationStatus)") }
    return String(decoding: text, as: UTF8.self).trimmingCharacters(in: .whitespacesAndNewlines)
}

/// A loop device over a sparse file.
final class LoopDevice: Sendable {
    static let isAvailable = getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/loop-control")
    let path: String
    private let backing: String

    init(megabytes: Int) throws {
        backing = NSTemporaryDirectory() + "ckstore-loop-\(UUID()).img"
        _ = try run("truncate", ["-s", "\(megabytes)M", backing])
        path = try run("losetup", ["--find", "--show", backing])
    }

    func makeFileSystem() throws { _ = try run("mkfs.ext4", ["-q", "-F", path]) }

    deinit {
        _ = try? run("losetup", ["--detach", path])
        try? FileManager.default.removeItem(atPath: backing)
    }
}

/// A mounted file system.
final class Mount: Sendable {
    static let isAvailable = getuid() == 0
    let path: String

    init(_ device: String, _ options: [String] = []) throws {
        path = NSTemporaryDirectory() + "ckstore-mount-\(UUID())"
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
        _ = try run("mount", options + [device, path])
    }

    deinit {
        // Whoever had files open there may be about to close them.
        _ = try? run("umount", ["--lazy", path])
        try? FileManager.default.removeItem(atPath: path)
    }
}
