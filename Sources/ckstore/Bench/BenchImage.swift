// The memory that is saved: a file's content, or real memory of this system.
//
// Invariant: the built image is the same for the same files on the system, but for the heap's addresses.

import CLinux
import FoundationEssentials
import Glibc
import PageCodec
import Units

/// A region's content in memory, with a copy in a memory file.
struct BenchImage: Sendable {
    var memory: BenchMemory
    /// Where it comes from, for the report.
    var source: String
    var pageCount: Int { memory.count / pageSize }

    /// The content of a file, such as a guest's memory; cut to whole pages.
    static func load(_ path: String, limit: ByteCount?) throws -> BenchImage {
        let descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC)
        guard descriptor >= 0 else { throw systemError("open", path) }
        defer { close(descriptor) }
        var status = stat()
        guard unsafe fstat(descriptor, &status) == 0 else { throw systemError("look at", path) }
        let whole = min(Int(status.st_size), limit?.int ?? Int.max)
        let count = whole / pageSize * pageSize
        guard count > 0 else { throw systemError("use", path + " (it has less than a page)", EINVAL) }
        let memory = try BenchMemory(count: count, isTouched: true)
        unsafe try readFully(descriptor, memory.bytes, path)
        return BenchImage(memory: memory, source: "the first \(count) bytes of \(path)")
    }

    /// Real memory of this system.
    static func build(size: ByteCount, say: (String) -> Void) throws -> BenchImage {
        let memory = try BenchMemory(count: max(size.int / pageSize, 1) * pageSize, isTouched: true)
        say("looking for programs and libraries")
        var builder = ImageBuilder(memory)
        try builder.fill(say: say)
        return BenchImage(memory: memory, source: builder.description)
    }

    private static func readFully(_ descriptor: Int32, _ bytes: UnsafeMutableRawBufferPointer, _ path: String) throws {
        var done = 0
        while done < bytes.count {
            let got = unsafe pread(descriptor, bytes.baseAddress! + done, bytes.count - done, done)
            if got < 0, errno == EINTR { continue }
            guard got > 0 else { throw systemError("read", path, got < 0 ? errno : EIO) }
            done += got
        }
    }

    /// An unnamed file in memory with the image as its content.
    func memoryFile() throws -> Int32 {
        let descriptor = unsafe ck_open_anonymous("ckstore-bench", false)
        guard descriptor >= 0 else { throw systemError("make", "a file in memory", -descriptor) }
        let status = unsafe writeAll(descriptor, memory.reading)
        guard status == 0 else {
            close(descriptor)
            throw systemError("write", "a file in memory", status)
        }
        return descriptor
    }
}

/// Puts an image together: pieces of 2 MiB from four sources in a fixed pattern, like the memory of a machine that
/// runs programs.
private struct ImageBuilder {
    private let memory: BenchMemory
    private var code: FileStream
    private var data: FileStream
    private var heap: HeapStream
    private static let pieceBytes = 2 << 20
    /// Of 20 pieces: programs and libraries as the page cache holds them, other files there, heap; the rest is zero.
    private static let (codePieces, dataPieces, heapPieces, allPieces) = (13, 2, 2, 20)

    var description: String {
        let share = { (pieces: Int) in pieces * 100 / Self.allPieces }
        return "real memory of this system, in pieces of 2 MiB: "
            + "\(share(Self.codePieces)) % programs and libraries of /usr/bin and /usr/lib as mapped, "
            + "\(share(Self.dataPieces)) % other files of /usr/share and /usr/lib as cached, "
            + "\(share(Self.heapPieces)) % heap of this process after it has indexed the folders of /usr, "
            + "\(share(Self.allPieces - Self.codePieces - Self.dataPieces - Self.heapPieces)) % zero"
    }

    init(_ memory: BenchMemory) {
        self.memory = memory
        let programs = FileStream.files(below: ["/usr/bin", "/usr/lib"], seed: 1)
        let others = FileStream.files(below: ["/usr/share", "/usr/lib"], seed: 2)
        code = FileStream(programs) { isProgram in isProgram }
        data = FileStream(others) { isProgram in !isProgram }
        heap = HeapStream(indexing: programs + others, except: memory)
    }

    mutating func fill(say: (String) -> Void) throws {
        var random = BenchRandom(seed: 7)
        var offset = 0
        while offset < memory.count {
            var kinds: [Int] = []
            for (kind, count) in [Self.codePieces, Self.dataPieces, Self.heapPieces].enumerated() {
                kinds += Array(repeating: kind, count: count)
            }
            kinds += Array(repeating: 3, count: Self.allPieces - kinds.count)
            kinds.shuffle(using: &random)
            for kind in kinds where offset < memory.count {
                let end = min(offset + Self.pieceBytes, memory.count)
                let piece = unsafe memory.writablePiece(offset..<end)
                switch kind {
                case 0: try unsafe code.read(into: piece)
                case 1: try unsafe data.read(into: piece)
                case 2: try unsafe heap.read(into: piece)
                default: break
                }
                offset = end
            }
            say("image: \(readable(ByteCount(offset)))")
        }
    }
}

/// File after file, each from a page boundary on, its last page filled up with zeros; from the start again at the end.
private struct FileStream {
    private let paths: [String]
    private let wants: (Bool) -> Bool
    private var next = 0
    private var descriptor: Int32 = -1
    private var position = 0

    init(_ paths: [String], wants: @escaping (Bool) -> Bool) {
        self.paths = paths
        self.wants = wants
    }

    /// The regular files below `folders` in an order that depends on their names and `seed` alone.
    static func files(below folders: [String], seed: UInt64) -> [String] {
        var found: [(key: UInt64, path: String)] = []
        for folder in folders {
            // What can't be listed has nothing that could be used.
            for name in (try? FileManager.default.subpathsOfDirectory(atPath: folder)) ?? [] {
                let path = folder + "/" + name
                found.append((path.utf8.reduce(14_695_981_039_346_656_037 ^ seed) { ($0 ^ UInt64($1)) &* 1_099_511_628_211 }, path))
            }
        }
        return found.sorted { ($0.key, $0.path) < ($1.key, $1.path) }.map(\.path)
    }

    mutating func read(into piece: UnsafeMutableRawBufferPointer) throws {
        var done = 0
        while done < piece.count {
            if descriptor < 0 { try openNext() }
            let got = unsafe pread(descriptor, piece.baseAddress! + done, piece.count - done, position)
            if got < 0, errno == EINTR { continue }
            position += max(got, 0)
            if got <= 0 {
                close(descriptor)
                descriptor = -1
                // The rest of the last page is zero.
                done = min((done + pageSize - 1) / pageSize * pageSize, piece.count)
                continue
            }
            done += got
        }
    }

    private mutating func openNext() throws {
        for _ in 0..<paths.count {
            let path = paths[next]
            next = (next + 1) % paths.count
            descriptor = unsafe open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK)
            guard descriptor >= 0 else { continue }
            position = 0
            var status = stat()
            if unsafe fstat(descriptor, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_size > 0, wants(isProgram()) {
                return
            }
            close(descriptor)
            descriptor = -1
        }
        throw systemError("find files to fill the image with in", "/usr", ENOENT)
    }

    private func isProgram() -> Bool {
        var magic: UInt32 = 0
        return unsafe pread(descriptor, &magic, 4, 0) == 4 && magic == 0x464C_457F
    }
}

/// The anonymous memory of this process while it holds an index of many files: dictionaries, arrays, strings and
/// objects that point at each other.
private struct HeapStream {
    private final class Node {
        let name: String
        let length: Int
        var children: [String: Node] = [:]
        unowned(unsafe) let parent: Node?
        init(_ name: String, parent: Node?) {
            self.name = name
            unsafe self.parent = parent
            length = name.utf8.count
        }
    }
    private let root = Node("", parent: nil)
    private var ranges: [Range<Int>] = []
    private var current = 0
    private var position = 0
    private let memory: Int32

    init(indexing paths: [String], except image: BenchMemory) {
        for path in paths {
            var node = root
            for name in path.split(separator: "/") {
                let key = String(name)
                let child = node.children[key] ?? Node(key, parent: node)
                node.children[key] = child
                node = child
            }
        }
        memory = unsafe open("/proc/self/mem", O_RDONLY | O_CLOEXEC)
        let taken = unsafe Int(bitPattern: image.base)
        ranges = Self.heapRanges().filter { !$0.contains(taken) }
    }

    /// Where malloc's memory is: the heap, and private mappings of up to 64 MiB that no file is behind.
    private static func heapRanges() -> [Range<Int>] {
        guard let text = try? String(contentsOfFile: "/proc/self/maps", encoding: .utf8) else { return [] }
        return text.split(separator: "\n").compactMap { line in
            let fields = line.split(separator: " ")
            guard fields.count < 6 || fields[5] == "[heap]", fields[1] == "rw-p" else { return nil }
            let ends = fields[0].split(separator: "-").compactMap { Int($0, radix: 16) }
            guard ends.count == 2, ends[1] - ends[0] <= 64 << 20 else { return nil }
            return ends[0]..<ends[1]
        }
    }

    /// Fills `piece` with pages that are not zero, in the order of their addresses.
    mutating func read(into piece: UnsafeMutableRawBufferPointer) throws {
        guard memory >= 0, !ranges.isEmpty else { throw systemError("read", "/proc/self/mem", EIO) }
        var done = 0
        var misses = 0
        while done + pageSize <= piece.count {
            if position >= ranges[current].count {
                current = (current + 1) % ranges.count
                position = 0
                misses += 1
                guard misses <= ranges.count * 2 + piece.count else { throw systemError("find a heap in", "/proc/self/mem", ENODATA) }
            }
            let page = unsafe UnsafeMutableRawBufferPointer(rebasing: piece[done..<done + pageSize])
            let got = unsafe pread(memory, page.baseAddress, pageSize, ranges[current].lowerBound + position)
            position += pageSize
            if got == pageSize, unsafe !isZero(UnsafeRawBufferPointer(page)) { done += pageSize }
        }
    }
}
