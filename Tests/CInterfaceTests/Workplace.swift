// Where a test installs the C library and runs programs.

import Foundation

/// A directory of its own for one test, and the programs run in it.
struct Workplace {
    /// A program did not exit with 0.
    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    private let directory: URL
    /// The directory of the test's sources.
    let sources = URL(fileURLWithPath: #filePath).deletingLastPathComponent().path
    /// The library as the package builds it, beside the running test program.
    let library: String

    init() throws {
        directory = FileManager.default.temporaryDirectory.appending(component: "ckstore-c-\(UUID().uuidString)")
        try FileManager.default.createDirectory(
            at: directory, withIntermediateDirectories: false, attributes: [.posixPermissions: 0o700])
        let program = try FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        library = URL(fileURLWithPath: program).deletingLastPathComponent().appending(component: "libCKStoreC.so").path
    }

    func remove() {
        do { try FileManager.default.removeItem(at: directory) } catch {
            print("can't remove \(directory.path): \(error)")
        }
    }

    /// A path in the directory.
    func path(_ name: String) -> String { directory.appending(path: name).path }

    /// Installs the library under `prefix`.
    func install() async throws {
        try await run(sources + "/../../Sources/CKStoreC/install", ["--prefix", path("prefix"), "--library", library])
    }

    /// Runs a program; throws with what it has printed when it fails.
    func run(_ program: String, _ arguments: [String]) async throws { _ = try await output(program, arguments) }

    /// What a program prints.
    func output(_ program: String, _ arguments: [String]) async throws -> String {
        let log = path("output-\(UUID().uuidString)")
        guard FileManager.default.createFile(atPath: log, contents: nil), let file = FileHandle(forWritingAtPath: log) else {
            throw Failure(description: "can't write \(log)")
        }
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        process.arguments = [program] + arguments
        process.environment = ProcessInfo.processInfo.environment.merging(
            ["PKG_CONFIG_PATH": path("prefix/lib/pkgconfig"), "LC_ALL": "C"]) { $1 }
        process.standardOutput = file
        process.standardError = file
        try await withCheckedThrowingContinuation { (done: CheckedContinuation<Void, any Error>) in
            process.terminationHandler = { _ in done.resume() }
            do { try process.run() } catch {
                process.terminationHandler = nil
                done.resume(throwing: error)
            }
        }
        try file.close()
        let text = try String(contentsOfFile: log, encoding: .utf8)
        guard process.terminationReason == .exit, process.terminationStatus == 0 else {
            let line = ([program] + arguments).joined(separator: " ")
            throw Failure(description: "\(line): ended with \(process.terminationStatus)\n\(text)")
        }
        return text
    }
}
