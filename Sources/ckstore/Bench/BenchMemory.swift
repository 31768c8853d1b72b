// Memory that the bench works on, and what the process itself uses.
//
// Invariant: pieces of one `BenchMemory` that several threads work on don't overlap.

import Glibc
import Units

/// Memory straight from the system, zero and untouched at first. Unmapped with its last reference.
@safe final class BenchMemory: @unchecked Sendable {
    let bytes: UnsafeMutableRawBufferPointer

    /// - Parameter isTouched: true to have the system provide all pages now.
    init(count: Int, isTouched: Bool) throws {
        let flags = MAP_PRIVATE | MAP_ANONYMOUS | (isTouched ? MAP_POPULATE : 0)
        let base = unsafe mmap(nil, count, PROT_READ | PROT_WRITE, flags, -1, 0)
        guard let base = unsafe base, unsafe base != MAP_FAILED else { throw systemError("get \(readable(ByteCount(count))) of", "memory") }
        unsafe bytes = UnsafeMutableRawBufferPointer(start: base, count: count)
    }

    deinit { unsafe munmap(base, count) }

    var count: Int { unsafe bytes.count }
    var base: UnsafeMutableRawPointer { unsafe bytes.baseAddress! }
    var reading: UnsafeRawBufferPointer { unsafe UnsafeRawBufferPointer(bytes) }

    func piece(_ range: Range<Int>) -> UnsafeRawBufferPointer {
        unsafe UnsafeRawBufferPointer(rebasing: bytes[range])
    }

    func writablePiece(_ range: Range<Int>) -> UnsafeMutableRawBufferPointer {
        unsafe UnsafeMutableRawBufferPointer(rebasing: bytes[range])
    }
}

/// What the system says about this process.
enum ProcessMemory {
    /// Bytes of private (anonymous) memory that are resident.
    static func anonymousBytes() throws -> Int {
        var text = [UInt8](repeating: 0, count: 1 << 14)
        let descriptor = unsafe open("/proc/self/status", O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemError("open", "/proc/self/status") }
        defer { close(descriptor) }
        let count = unsafe text.withUnsafeMutableBytes { unsafe read(descriptor, $0.baseAddress, $0.count) }
        guard count > 0 else { throw systemError("read", "/proc/self/status") }
        for line in text[..<count].split(separator: UInt8(ascii: "\n")) {
            guard line.starts(with: "RssAnon:".utf8) else { continue }
            let digits = line.filter { (48...57).contains($0) }
            return (Int(String(decoding: digits, as: UTF8.self)) ?? 0) << 10
        }
        throw systemError("find RssAnon in", "/proc/self/status", ENODATA)
    }
}

extension ProcessMemory {
    /// Has malloc return what is free to the system, so that using it again counts. (Glibc's module does not show
    /// `malloc_trim`.)
    static func giveBackFree() {
        guard let function = unsafe dlsym(nil, "malloc_trim") else { return }
        let trim = unsafe unsafeBitCast(function, to: (@convention(c) (Int) -> Int32).self)
        _ = trim(0)
    }
}

/// Watches how much the private memory of this process grows while something runs.
final class MemoryWatch: Sendable {
    private let start: Int
    private let state: BenchLock<(peak: Int, isOver: Bool, failure: (any Error)?)>
    private static let microsecondsBetween: UInt32 = 500

    init() throws {
        ProcessMemory.giveBackFree()
        start = try ProcessMemory.anonymousBytes()
        state = BenchLock((peak: 0, isOver: false, failure: nil))
    }

    /// The most bytes beyond those at the start, while `body` ran.
    func growth(_ body: @escaping @Sendable () throws -> Void) throws -> Int {
        try inBenchThreads(2) { [self] number in
            if number == 0 {
                defer { state.withLock { $0.isOver = true } }
                try body()
            } else {
                while !state.withLock({ $0.isOver }) {
                    let now = try ProcessMemory.anonymousBytes()
                    state.withLock { $0.peak = max($0.peak, now) }
                    usleep(Self.microsecondsBetween)
                }
            }
        }
        return max(0, state.withLock { $0.peak } - start)
    }
}
