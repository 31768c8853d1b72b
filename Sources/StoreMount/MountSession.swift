// Requests of the kernel, answered from the tree and the open files.
//
// Invariants:
// - Every request is answered once, with what it asked for or an error number; damage is an I/O error and a line in the log.
// - Functions here are called by several threads at once.

import CStoreMount
import CheckpointStore
import Glibc
import StoreFormat
import Units

/// Answers requests. Thread-safe.
final class MountSession: Sendable {
    private let tree: MountTree
    private let files = OpenFiles()
    private let pages: RegionPages
    private let ahead: ReadAhead
    private let log: MountLog

    init(_ tree: MountTree, cache: ByteCount, _ ahead: ReadAhead, _ log: MountLog) {
        self.tree = tree
        self.ahead = ahead
        self.log = log
        pages = RegionPages(capacity: cache)
    }

    /// The error number of what went wrong.
    private func number(_ error: StoreError) -> Int32 {
        log.add(error)
        return switch error.code {
        case .notFound: ENOENT
        case .permission: EACCES
        case .busy: EBUSY
        default: EIO
        }
    }

    /// Runs `body`, which answers `request`; answers it with an error number when `body` throws.
    private func answer(_ request: MountRequest, _ body: () throws(StoreError) -> Void) {
        do { try body() } catch { request.fail(number(error)) }
    }

    // MARK: names and attributes

    func lookUp(_ request: MountRequest, _ folder: UInt64, _ name: String?) {
        answer(request) { () throws(StoreError) in
            guard let inode = Inode(folder) else { return request.fail(ESTALE) }
            // A name that is no text, or too long, is nobody's.
            if let name, (1...Names.maximumLength).contains(name.utf8.count), let node = try tree.lookUp(name, in: inode) {
                return request.answer(node)
            }
            let isMoving = inode == .root && tree.follows
            request.answerNoName(seconds: isMoving ? 0 : Trust.constantSeconds)
        }
    }

    func attributes(_ request: MountRequest, _ inode: UInt64) {
        answer(request) { () throws(StoreError) in
            guard let inode = Inode(inode), let node = try tree.node(inode) else { return request.fail(ESTALE) }
            request.answer(attributes: node)
        }
    }

    func readLink(_ request: MountRequest, _ inode: UInt64) {
        answer(request) { () throws(StoreError) in
            guard let inode = Inode(inode), let target = try tree.target(of: inode) else { return request.fail(ESTALE) }
            request.answer(link: target)
        }
    }

    func space(_ request: MountRequest) {
        answer(request) { () throws(StoreError) in
            try tree.refresh()
            let snapshot = tree.snapshot
            let size = UInt64(pageSize)
            request.answer(
                ck_space(
                    block_size: size, blocks: snapshot.space.total.rawValue / size, free_blocks: snapshot.space.free.rawValue / size,
                    files: UInt64(snapshot.checkpointCount)))
        }
    }

    // MARK: files

    /// - Parameter forWriting: memory is opened for private mappings, of which the program has what it writes for itself. Nobody maps
    ///   anything else to write to it: that is refused before a program relies on it.
    func open(_ request: MountRequest, _ number: UInt64, forWriting: Bool) {
        answer(request) { () throws(StoreError) in
            guard let inode = Inode(number) else { return request.fail(ESTALE) }
            switch inode {
            case .region(let checkpoint, let index):
                guard let folder = try tree.folder(checkpoint), index < folder.regions.count else { break }
                guard !forWriting || folder.regions[index].kind == .memory else { return request.fail(EROFS) }
                let handle = files.addRegion(inode) { OpenRegion(inode, folder, folder.regions[index], pages) }
                return request.answer(file: handle, forWriting ? CK_CACHE_PRIVATE : CK_CACHE_KEEP)
            case .description(let checkpoint):
                guard let folder = try tree.folder(checkpoint) else { break }
                guard !forWriting else { return request.fail(EROFS) }
                return request.answer(file: files.add(.bytes(try folder.description())), tree.follows ? CK_CACHE_NONE : CK_CACHE_KEEP)
            default: break
            }
            request.fail(ESTALE)
        }
    }

    func close(_ handle: UInt64) { files.close(handle) }

    func read(_ request: MountRequest, _ handle: UInt64, _ offset: UInt64, _ size: Int) {
        answer(request) { () throws(StoreError) in
            switch files[handle] {
            case .region(let file):
                if let span = file.spanAhead(ofReadAt: offset, size) { ahead.prepare(span, of: file) }
                try file.read(at: offset, size) { request.answer($0) }
            case .bytes(let bytes):
                let start = Int(min(offset, UInt64(bytes.count)))
                unsafe bytes[start..<min(bytes.count, start + size)].withUnsafeBytes { unsafe request.answer($0) }
            case .listing, nil: request.fail(EBADF)
            }
        }
    }

    func seek(_ request: MountRequest, _ handle: UInt64, _ offset: UInt64, forHole: Bool) {
        answer(request) { () throws(StoreError) in
            let found: UInt64?
            switch files[handle] {
            case .region(let file): found = forHole ? try file.hole(from: offset) : try file.data(from: offset)
            case .bytes(let bytes): found = offset < UInt64(bytes.count) ? (forHole ? UInt64(bytes.count) : offset) : nil
            case .listing, nil: return request.fail(EBADF)
            }
            if let found { request.answer(offset: found) } else { request.fail(ENXIO) }
        }
    }

    // MARK: folders

    func openFolder(_ request: MountRequest, _ number: UInt64) {
        answer(request) { () throws(StoreError) in
            guard let inode = Inode(number), let entries = try tree.entries(of: inode) else { return request.fail(ESTALE) }
            request.answer(folder: files.add(.listing(entries)), isConstant: !tree.follows)
        }
    }

    func list(_ request: MountRequest, _ handle: UInt64, from first: UInt64, _ size: Int, withAttributes: Bool) {
        answer(request) { () throws(StoreError) in
            guard case .listing(let entries) = files[handle] else { return request.fail(EBADF) }
            let buffer = UnsafeMutableRawBufferPointer.allocate(byteCount: size, alignment: 8)
            defer { unsafe buffer.deallocate() }
            var used = 0
            var next = first
            while next < UInt64(entries.count) {
                let entry = entries[Int(next)]
                next += 1
                // What has gone since the folder was opened is left out.
                guard let node = try tree.node(of: entry, isBrief: !withAttributes) else { continue }
                let room = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[used...])
                guard let length = unsafe request.add(entry.name, node, next: next, withAttributes: withAttributes, to: room) else { break }
                used += length
            }
            unsafe request.answer(UnsafeRawBufferPointer(rebasing: buffer[..<used]))
        }
    }
}
