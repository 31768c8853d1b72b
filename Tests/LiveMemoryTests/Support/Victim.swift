// A process that tests look at from outside, and what they need to know about the host.

import CheckpointCore
import Foundation
@testable import LiveMemory
import Testing
import Units

struct TestFailure: Error, CustomStringConvertible {
    var description: String
    init(_ description: String) { self.description = description }
}

extension Trait where Self == ConditionTrait {
    /// Looking into other processes needs root.
    static var asRoot: Self { .enabled(if: geteuid() == 0, "skipped: only root may look into other processes") }
}

/// A child that runs `victimProgram`. Commands wait for their answer; one thread at a time.
final class Victim {
    let process: Process
    private let input = Pipe()
    private let output = Pipe()
    private var rest: [UInt8] = []
    let address: TargetAddress
    let pages: PageCount
    var pid: Int32 { process.processIdentifier }

    init(pages: Int, isHuge: Bool = false, writers: Int = 2) throws {
        process = Process()
        process.executableURL = URL(fileURLWithPath: "/usr/bin/python3")
        process.arguments = ["-c", victimProgram, "\(pages)", isHuge ? "1" : "0", "\(writers)"]
        process.standardInput = input
        process.standardOutput = output
        self.pages = PageCount(pages)
        try process.run()
        var line: [UInt8] = []
        var byte: UInt8 = 0
        while unsafe read(output.fileHandleForReading.fileDescriptor, &byte, 1) == 1, byte != 10 { line.append(byte) }
        let words = String(decoding: line, as: UTF8.self).split(separator: " ")
        guard words.count == 2, words[0] == "ready", let address = UInt64(words[1].dropFirst(2), radix: 16) else {
            process.terminate()
            throw TestFailure("the child did not start: \(String(decoding: line, as: UTF8.self))")
        }
        self.address = TargetAddress(address)
    }

    deinit { end() }

    func end() {
        guard process.isRunning else { return }
        kill(pid, SIGKILL)
        process.waitUntilExit()
    }

    func send(_ command: String) throws {
        try input.fileHandleForWriting.write(contentsOf: Data((command + "\n").utf8))
    }

    /// The next line, or nil when none has come in time.
    func answer(withinMilliseconds limit: Int32 = 60_000) throws -> String? {
        while true {
            if let end = rest.firstIndex(of: 10) {
                let line = String(decoding: rest[..<end], as: UTF8.self)
                rest.removeSubrange(...end)
                return line
            }
            var wait = pollfd(fd: output.fileHandleForReading.fileDescriptor, events: Int16(POLLIN), revents: 0)
            guard unsafe poll(&wait, 1, limit) == 1 else { return nil }
            var bytes = [UInt8](repeating: 0, count: 4096)
            let got = unsafe read(wait.fd, &bytes, bytes.count)
            guard got > 0 else { throw TestFailure("the child has ended") }
            rest += bytes[..<got]
        }
    }

    @discardableResult
    func command(_ command: String) throws -> String {
        try send(command)
        guard let answer = try answer() else { throw TestFailure("no answer to '\(command)'") }
        return answer
    }

    /// Waits until its threads have written something more.
    func waitForWrites() throws {
        let before = try command("written")
        for _ in 0..<2000 {
            if try command("written") != before { return }
            usleep(10_000)
        }
        throw TestFailure("the writers stand still")
    }

    func target() throws -> TargetProcess { try TargetProcess(pid: pid) }

    /// Its memory, mapped here.
    func block() throws -> SharedMemoryBlock {
        let target = try target()
        guard let region = try target.mappings().sharedRegions.first(where: { $0.addresses.lowerBound == address }) else {
            throw TestFailure("no shared memory at \(address)")
        }
        return try SharedMemoryBlock(target, region)
    }

    /// What /proc/PID/smaps says of its memory: the flags of all pieces.
    func flags() throws -> Set<String> {
        var isOurs = false
        var flags = Set<String>()
        for line in try SystemText.lines("/proc/\(pid)/smaps").map(\.text) {
            if line.first?.isUppercase == false || line.first?.isHexDigit == true, line.contains("-"), !line.hasPrefix("VmFlags") {
                isOurs = line.contains("memfd:victim")
            }
            if isOurs, line.hasPrefix("VmFlags:") { flags.formUnion(line.dropFirst(8).split(separator: " ").map(String.init)) }
        }
        return flags
    }
}

/// A private copy of a block's pages.
struct Image {
    var bytes: [UInt8]

    /// All of it.
    init(_ block: SharedMemoryBlock) throws {
        bytes = [UInt8](repeating: 0, count: block.pageCount.bytes.int)
        try refresh(PageRanges([block.pages]), from: block)
    }

    mutating func refresh(_ pages: PageRanges, from block: SharedMemoryBlock) throws {
        for range in pages.ranges {
            try unsafe bytes.withUnsafeMutableBytes { all in
                let start = range.lowerBound.int * pageSize
                let part = unsafe UnsafeMutableRawBufferPointer(rebasing: all[start..<start + (range.upperBound - range.lowerBound).bytes.int])
                try unsafe block.copy(range, into: part)
            }
        }
    }

    /// The pages that differ.
    func differences(_ other: Image) -> [Int] {
        (0..<bytes.count / pageSize).filter { page in
            let range = page * pageSize..<(page + 1) * pageSize
            return unsafe bytes.withUnsafeBytes { a in
                unsafe other.bytes.withUnsafeBytes { b in
                    unsafe memcmp(a.baseAddress! + range.lowerBound, b.baseAddress! + range.lowerBound, pageSize) != 0
                }
            }
        }
    }
}

extension PageRanges {
    func contains(_ page: Int) -> Bool { !intersection(PageRanges([PageIndex(page)..<PageIndex(page + 1)])).isEmpty }
}

/// Huge pages of the host, for as long as a test takes.
enum HugePages {
    private static let path = "/proc/sys/vm/nr_hugepages"

    /// Runs `body` when `count` huge pages of 2 MiB can be had, else says that it is left out. Puts the host's number back.
    static func with(_ count: Int, _ body: () throws -> Void) throws {
        let before = try String(decoding: SystemText.read(path), as: UTF8.self)
        defer { try? Data(before.utf8).write(to: URL(fileURLWithPath: path)) }
        guard let number = Int(before.filter { !$0.isNewline }) else { throw TestFailure("\(path) holds '\(before)'") }
        try Data("\(number + count)".utf8).write(to: URL(fileURLWithPath: path))
        let got = try String(decoding: SystemText.read(path), as: UTF8.self).filter { !$0.isNewline }
        guard let got = Int(got), got >= number + count else {
            print("left out: the host gives no \(count) huge pages")
            return
        }
        try body()
    }
}
