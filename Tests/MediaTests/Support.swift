// What the media tests share: scratch directories, real loop devices and mounts, bytes with a seed.

import Foundation
import Media
import Testing
import Units

/// A directory of its own, gone with the object.
final class ScratchDirectory: Sendable {
    let path: String

    init() throws {
        path = FileManager.default.temporaryDirectory.appendingPathComponent("ckstore-media-\(UUID())").path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: false)
    }

    deinit { try? FileManager.default.removeItem(atPath: path) }

    func file(_ name: String = "store.ck") -> String { "\(path)/\(name)" }
    func locator(_ name: String = "store.ck") throws -> Locator { try Locator(kind: .file, target: file(name)) }
}

/// Runs a program without a shell. Throws when it fails; returns its output without the last newline.
@discardableResult
func run(_ program: String, _ arguments: String...) throws -> String {
    let process = Process()
    process.executableURL = URL(fileURLWithPath: "/usr/bin/env")
    process.arguments = [program] + arguments
    process.environment = ProcessInfo.processInfo.environment.merging(["PATH": "/usr/sbin:/usr/bin:/sbin:/bin"]) { $1 }
    let output = Pipe(), errors = Pipe()
    process.standardOutput = output
    process.standardError = errors
    try process.run()
    let text = String(decoding: output.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    let complaint = String(decoding: errors.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    guard process.terminationStatus == 0 else { throw Failed(text: "\(program) \(arguments): \(complaint)") }
    return text.trimmingCharacters(in: .newlines)
}

struct Failed: Error { var text: String }

/// The processes that hold a lock, but for those that only pass by: a process that another test spawns shares every
/// descriptor of this one, and so its locks, until it executes. After ten seconds they count as holders too.
func lastingHolders(of range: LockRange, seenBy medium: any Medium) -> [pid_t?] {
    let end = ContinuousClock.now + .seconds(10)
    var holders = medium.locks.holders(of: range).map(\.process)
    while holders.count > 1, ContinuousClock.now < end {
        usleep(5_000)
        holders = medium.locks.holders(of: range).map(\.process)
    }
    return holders
}

/// A loop device over a sparse file, detached with the object.
final class LoopDevice: Sendable {
    let path: String
    let backing: String

    /// Why tests on loop devices are skipped, when they are.
    static let need: Comment = "needs root, loop devices and mkfs.ext4"
    static let isAvailable =
        getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/loop-control")
        && FileManager.default.isExecutableFile(atPath: "/usr/sbin/mkfs.ext4")

    init(in directory: String, megabytes: Int) throws {
        backing = "\(directory)/disk-\(UUID()).img"
        try run("truncate", "-s", "\(megabytes)M", backing)
        path = try run("losetup", "--find", "--show", backing)
    }

    deinit { _ = try? run("losetup", "--detach", path) }

    func locator() throws -> Locator { try Locator(kind: .raw, target: path) }
}

/// A mounted file system, unmounted with the object.
final class Mount: Sendable {
    let path: String

    init(at path: String, _ arguments: [String]) throws {
        self.path = path
        try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: "/bin/mount")
        process.arguments = arguments + [path]
        try process.run()
        process.waitUntilExit()
        guard process.terminationStatus == 0 else { throw Failed(text: "mount \(arguments)") }
    }

    deinit { _ = try? run("umount", "--lazy", path) }

    func locator(_ kind: MediumKind = .file, _ name: String = "store.ck") throws -> Locator {
        try Locator(kind: kind, target: "\(path)/\(name)")
    }
}

/// Numbers that a seed determines (SplitMix64).
struct SeededGenerator: RandomNumberGenerator {
    var state: UInt64
    init(seed: UInt64) { state = seed }
    mutating func next() -> UInt64 {
        state &+= 0x9E37_79B9_7F4A_7C15
        var z = state
        z = (z ^ (z >> 30)) &* 0xBF58_476D_1CE4_E5B9
        z = (z ^ (z >> 27)) &* 0x94D0_49BB_1331_11EB
        return z ^ (z >> 31)
    }
}

/// Bytes that differ everywhere, none of them zero.
func pattern(_ seed: UInt64, count: Int) -> [UInt8] {
    var generator = SeededGenerator(seed: seed)
    return unsafe [UInt8](unsafeUninitializedCapacity: count + 8) { buffer, initialized in
        for place in stride(from: 0, to: count, by: 8) {
            let word = generator.next() | 0x0101_0101_0101_0101
            unsafe UnsafeMutableRawBufferPointer(buffer).storeBytes(of: word, toByteOffset: place, as: UInt64.self)
        }
        initialized = count
    }
}

extension Medium {
    /// Writes from memory that is aligned for direct writes, so that offset and length decide.
    func write(_ bytes: [UInt8], at offset: Int) throws {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: bytes.count, alignment: 4096)
        defer { unsafe buffer.deallocate() }
        unsafe buffer.copyBytes(from: bytes)
        try unsafe write(at: MediumOffset(offset), UnsafeRawBufferPointer(buffer))
    }

    func bytes(at offset: Int, count: Int) throws -> [UInt8] {
        let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: count, alignment: 4096)
        defer { unsafe buffer.deallocate() }
        try unsafe read(at: MediumOffset(offset), into: buffer)
        return unsafe [UInt8](buffer)
    }
}

func zeros(_ count: Int) -> [UInt8] { [UInt8](repeating: 0, count: count) }

/// Runs `body` on `count` threads of their own, one number each, and waits for all of them.
func onThreads(_ count: Int, _ body: @escaping @Sendable (Int) -> Void) {
    let group = DispatchGroup()
    for index in 0..<count {
        group.enter()
        let thread = Thread {
            body(index)
            group.leave()
        }
        thread.start()
    }
    group.wait()
}

/// Expects `body` to throw a `MediumError` of this code, whose message has a place to look at.
@discardableResult
func expectFailure(
    _ code: MediumError.Code, at location: SourceLocation = #_sourceLocation, _ body: () throws -> Void
) -> MediumError? {
    do {
        try body()
        Issue.record("nothing was thrown where \(code) was expected", sourceLocation: location)
    } catch let error as MediumError {
        #expect(error.code == code, "\(error)", sourceLocation: location)
        return error
    } catch {
        Issue.record("\(error) was thrown where \(code) was expected", sourceLocation: location)
    }
    return nil
}
