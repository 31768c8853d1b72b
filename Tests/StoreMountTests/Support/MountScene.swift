// A store, and the command that mounts it, as users have them.
//
// Invariant: a scene leaves no mount and no process behind, whatever a test did to them.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import QEMUTesting
import StoreTesting
import Testing
import Units

/// Whether this machine can mount, and if not, why.
enum MountSupport {
    static let reason = "file systems in user space need root, /dev/fuse and the right to mount here"
    static let isAvailable: Bool = {
        let descriptor = unsafe open("/dev/fuse", O_RDWR | O_CLOEXEC)
        guard descriptor >= 0 else { return false }
        close(descriptor)
        return geteuid() == 0
    }()
}

/// A store in a folder of its own, with an empty directory to mount it on.
final class MountScene {
    let folder: TemporaryFolder
    let store: CheckpointStore
    var storePath: String { folder.file("store.ck") }
    var directory: String { folder.file("mount") }
    var logPath: String { folder.file("log") }

    init(_ size: ByteCount = .mebibytes(128)) throws {
        folder = try TemporaryFolder()
        store = try CheckpointStore.create(on: try createMedium(try Locator(folder.file("store.ck")), size: size, force: false))
        try FileManager.default.createDirectory(atPath: directory, withIntermediateDirectories: false)
    }

    deinit {
        store.close()
        _ = try? tool("umount", "-l", directory)
    }

    /// The path of a region's file, or of a checkpoint's folder.
    func path(_ checkpoint: String, _ region: String? = nil) -> String {
        "\(directory)/\(checkpoint)" + (region.map { "/\($0)" } ?? "")
    }

    /// Saves a checkpoint of whole regions.
    func save(_ name: String, parent: String? = nil, _ regions: KeyValuePairs<String, [UInt8]>) throws {
        try save(name, parent: parent, regions.map { ($0.key, $0.value) })
    }

    /// The same, for names that Swift takes for equal.
    func save(_ name: String, parent: String? = nil, _ regions: [(String, [UInt8])]) throws {
        let writer = try store.begin(name, parent: parent)
        for (region, bytes) in regions {
            let target = try writer.addRegion(region, kind: .disk, byteLength: ByteCount(bytes.count))
            try target.write(bytes + [UInt8](repeating: 0, count: (pageSize - bytes.count % pageSize) % pageSize))
        }
        try writer.commit()
    }

    /// Runs `ckstore` to its end.
    func run(_ arguments: String...) throws -> Outcome { try run(arguments) }
    func run(_ arguments: [String]) throws -> Outcome {
        try RunningTool(arguments, scratch: folder.path).wait(limitSeconds: 60)
    }

    /// Runs another program to its end.
    @discardableResult
    func tool(_ program: String, _ arguments: String..., limitSeconds: Double = 60) throws -> Outcome {
        try RunningTool([program] + arguments, program: "/usr/bin/env", scratch: folder.path).wait(limitSeconds: limitSeconds)
    }

    /// Mounts in the background. Returns the process that serves the mount.
    @discardableResult
    func mount(_ options: String...) throws -> pid_t { try mount(options) }

    private func mount(_ options: [String]) throws -> pid_t {
        let outcome = try run(["mount", storePath, directory, "--log", logPath, "--json"] + options)
        guard outcome.exitCode == 0 else { throw Mismatch("mount: \(outcome.errors)") }
        let value = try JSONSerialization.jsonObject(with: Data(outcome.output)) as? [String: Any]
        return try #require(value?["process"] as? Int32)
    }

    /// Mounts, runs `body`, and unmounts: what `body` opens must be closed by its end. `body` gets the process that serves the mount.
    func mounted(_ options: String..., body: (pid_t) throws -> Void) throws {
        try body(try mount(options))
        let outcome = try tool("umount", directory)
        if outcome.exitCode != 0 { throw Mismatch("umount: \(outcome.errors)") }
    }

    var log: [String] {
        String(decoding: FileManager.default.contents(atPath: logPath) ?? Data(), as: UTF8.self).split(separator: "\n").map(String.init)
    }

    func names(_ checkpoint: String? = nil) throws -> [String] {
        let names = try FileManager.default.contentsOfDirectory(atPath: checkpoint.map { path($0) } ?? directory)
        return checkpoint == nil ? names.filter { $0 != "latest" } : names
    }
}

/// Waits until `condition` holds; false when it does not within `seconds`.
func eventually(seconds: Double = 10, _ condition: () throws -> Bool) rethrows -> Bool {
    let end = Monotonic.now() + UInt64(seconds * 1e9)
    while try !condition() {
        guard Monotonic.now() < end else { return false }
        usleep(10_000)
    }
    return true
}

/// Whether a process is there (or a zombie that nobody has waited for).
func isRunning(_ process: pid_t) -> Bool {
    let state = FileManager.default.contents(atPath: "/proc/\(process)/stat").map { String(decoding: $0, as: UTF8.self) }
    return state.map { !$0.contains(") Z ") } ?? false
}

/// The most memory that a process has had.
func peakMemory(of process: pid_t) throws -> ByteCount {
    let status = String(decoding: try #require(FileManager.default.contents(atPath: "/proc/\(process)/status")), as: UTF8.self)
    let line = try #require(status.split(separator: "\n").first { $0.hasPrefix("VmHWM") })
    return .kibibytes(try #require(line.split(whereSeparator: \.isWhitespace).dropFirst().first.flatMap { UInt64($0) }))
}

/// An open file, read by system calls so that nothing is buffered.
final class OpenedFile {
    let descriptor: Int32

    init(_ path: String, _ flags: Int32 = O_RDONLY) throws {
        descriptor = unsafe open(path, flags | O_CLOEXEC)
        guard descriptor >= 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
    }

    deinit { close(descriptor) }

    /// What one `pread` gives.
    func read(at offset: Int, _ count: Int) throws -> [UInt8] {
        var bytes = [UInt8](repeating: 0xEE, count: count)
        let done = unsafe pread(descriptor, &bytes, count, off_t(offset))
        guard done >= 0 else { throw POSIXError(POSIXErrorCode(rawValue: errno) ?? .EIO) }
        return Array(bytes[..<done])
    }

    /// The place that `lseek` finds; nil: there is none.
    func seek(_ offset: Int, _ whence: Int32) -> Int? {
        let found = lseek(descriptor, off_t(offset), whence)
        return found < 0 ? nil : Int(found)
    }
}

/// Pages of which some are zero and some don't compress; the last one is cut at `length`.
func content(_ length: Int, seed: UInt64) -> [UInt8] {
    var random = SeededGenerator(seed: seed)
    var bytes: [UInt8] = []
    bytes.reserveCapacity(length + pageSize)
    while bytes.count < length { bytes += makePage(&random) }
    return Array(bytes[..<length])
}

/// Bytes that don't compress.
func noise(_ length: Int, seed: UInt64) -> [UInt8] {
    var random = SeededGenerator(seed: seed)
    let words = (0..<(length + 7) / 8).map { _ in random.next() }
    return unsafe words.withUnsafeBytes { unsafe Array(UnsafeRawBufferPointer(rebasing: $0[..<length])) }
}
