// What a backup holds.
//
// Invariant: `epoch`, `device` and the image that `read` gives belong together at any time: sealed pages are read from the staging until
// they have drained.

import CheckpointCore
import MachineMemory
import Threading
import Units

/// The state of a backup; its lock is the server's.
struct BackupState {
    private(set) var epoch = RollbackEpoch.none
    private var device: [UInt8] = []
    private var byteLength = ByteCount.zero
    private var shadow: (any Shadow)?
    /// Whether nothing was ever put into the shadow.
    private var isZero = false
    /// Who keeps checkpoints here; nil: nobody yet.
    private var owner: BackupIdentity?
    /// The number of the connection that was let in last.
    private var connection = 0
    /// Who is at its other end.
    private var identity: BackupIdentity?
    private var isClosed = false
    /// Pages that came since the last end marker, by number; nil: zeros.
    private var staged: [PageIndex: [UInt8]?] = [:]
    /// Pages of the last checkpoint that are not in the shadow yet.
    private var sealed: [PageIndex: [UInt8]?] = [:]
    private var pageCount: PageCount { PageCount(covering: byteLength) }

    init(_ options: BackupOptions) throws(EngineError) {
        guard let medium = options.medium, medium.size > .zero else { return }
        try StoredImage.lock(medium, .shared)
        let found = try StoredImage.load(medium)
        try StoredImage.unlock(medium)
        guard let found else { return }
        guard found.state.count <= BackupFrame.longestState else {
            throw EngineError(
                .unsupported, "the image has \(found.state.count) bytes of device state, more than the protocol can hand on",
                remedy: "Read it with RollbackImage.", place: medium.name)
        }
        try makeShadow(found.record.geometry.byteLength, found.record.name, options)
        epoch = found.record.epoch
        device = found.state
    }

    private mutating func makeShadow(_ byteLength: ByteCount, _ name: String, _ options: BackupOptions) throws(EngineError) {
        if let medium = options.medium {
            let geometry = try ImageGeometry(of: byteLength, stateCapacity: options.stateCapacity, place: medium.name)
            shadow = try MediumShadow(medium, geometry, name: name, replacesContent: false)
            isZero = false
        } else {
            shadow = try MemoryShadow(name, byteLength: byteLength)
            isZero = true
        }
        self.byteLength = byteLength
    }

    /// Lets a process in and returns the number of its connection; or throws `.refused`, `.mismatch`. Earlier connections are refused from
    /// now on: what is still on its way in them must not count behind the back of this one.
    mutating func admit(_ hello: BackupHello, _ options: BackupOptions, _ place: String) throws(EngineError) -> Int {
        if isClosed { throw EngineError(.cancelled, "the backup was closed", place: place) }
        switch hello.role {
        case .primary:
            guard owner == nil && epoch == .none || owner == hello.identity else {
                throw EngineError(
                    .refused, "this backup has the checkpoint of another process", remedy: "Take it over, or use another backup.", place: place)
            }
            guard hello.byteLength > .zero, hello.byteLength <= options.longestMemory, hello.byteLength.rawValue % UInt64(pageSize) == 0 else {
                throw EngineError(
                    .refused, "no backup for \(hello.byteLength) bytes of memory", remedy: "It takes at most \(options.longestMemory).",
                    place: place)
            }
            if shadow == nil { try makeShadow(hello.byteLength, hello.name, options) }
            guard byteLength == hello.byteLength else {
                throw EngineError(.mismatch, "this backup is for \(byteLength) bytes of memory", remedy: "Use another backup.", place: place)
            }
        case .successor:
            guard epoch != .none else { throw EngineError(.refused, "there is no checkpoint to take over", place: place) }
            owner = hello.identity
        }
        staged = [:]
        identity = hello.identity
        connection += 1
        return connection
    }

    func welcome(_ options: BackupOptions) -> BackupWelcome {
        BackupWelcome(
            capacity: min(options.stagingCapacity ?? pageCount, pageCount), byteLength: byteLength, isZero: isZero, state: device)
    }

    /// Takes pages for the checkpoint in the making.
    mutating func stage(_ frame: BackupFrame, from connection: Int, _ options: BackupOptions, _ place: String) throws(EngineError) {
        try check(connection, place)
        let count = try checkedCount(frame.pages, place)
        guard frame.payload.isEmpty || frame.payload.count == count.bytes.int else {
            throw BackupFrame.violation("\(frame.payload.count) bytes for \(count) pages", place)
        }
        for number in 0..<count.int {
            let bytes = frame.payload.isEmpty ? nil : [UInt8](frame.payload[number * pageSize..<(number + 1) * pageSize])
            staged[frame.pages.lowerBound + PageCount(number)] = .some(bytes)
        }
        // The first checkpoint destroys none: it need not be staged.
        if epoch == .none {
            try put(staged)
            staged = [:]
        }
        guard staged.count <= (options.stagingCapacity ?? pageCount).int else {
            throw EngineError(
                .refused, "more than \(options.stagingCapacity ?? pageCount) pages in one checkpoint", remedy: "Give it more room.", place: place)
        }
    }

    /// The end marker: what is staged becomes the checkpoint.
    mutating func seal(_ frame: BackupFrame, from connection: Int, _ options: BackupOptions, _ place: String) throws(EngineError) {
        try check(connection, place)
        guard frame.payload.count <= BackupFrame.longestState else {
            throw BackupFrame.violation("\(frame.payload.count) bytes of device state, at most \(BackupFrame.longestState) are allowed", place)
        }
        guard options.medium == nil || ByteCount(frame.payload.count) <= options.stateCapacity else {
            throw EngineError(
                .refused, "\(frame.payload.count) bytes of device state, and the image has room for \(options.stateCapacity)",
                remedy: "Start the backup with a larger state capacity.", place: place)
        }
        guard frame.epoch == epoch.next else { throw BackupFrame.violation("checkpoint \(frame.epoch) behind \(epoch)", place) }
        // What an earlier drain has left behind an error.
        try drain()
        owner = identity
        epoch = frame.epoch
        device = frame.payload
        sealed = staged
        staged = [:]
        isUndrained = true
    }
    private var isUndrained = false

    /// Brings the sealed pages into the image. After an error it can be called again.
    mutating func drain() throws(EngineError) {
        guard isUndrained, let shadow else { return }
        try put(sealed)
        try shadow.commit(device)
        sealed = [:]
        isUndrained = false
    }

    private mutating func put(_ pages: [PageIndex: [UInt8]?]) throws(EngineError) {
        isZero = false
        let zeros = [UInt8](repeating: 0, count: pageSize)
        for page in pages.keys.sorted() {
            var result: Result<Void, EngineError> = .success(())
            unsafe (pages[page]! ?? zeros).withUnsafeBytes { bytes in
                do throws(EngineError) { try unsafe shadow!.put(page..<page + PageCount(UInt64(1)), bytes) } catch { result = .failure(error) }
            }
            try result.get()
        }
    }

    mutating func discard(from connection: Int, _ place: String) throws(EngineError) {
        try check(connection, place)
        staged = [:]
    }

    /// Pages of the last checkpoint.
    func read(_ pages: Range<PageIndex>, for connection: Int, _ place: String) throws(EngineError) -> [UInt8] {
        try check(connection, place)
        let buffer = AlignedBytes(count: try checkedCount(pages, place).bytes.int)
        var start = pages.lowerBound
        while start < pages.upperBound {
            let page = start..<start + PageCount(UInt64(1))
            let offset = (start - pages.lowerBound).bytes.int
            if let content = sealed[start] {
                buffer.put(content ?? [UInt8](repeating: 0, count: pageSize), at: offset)
            } else {
                try unsafe buffer.withMutableBytes(offset..<offset + pageSize) { bytes throws(EngineError) in
                    try unsafe shadow!.read(page, into: bytes)
                }
            }
            start = page.upperBound
        }
        return buffer.copy(0..<buffer.count)
    }

    private func checkedCount(_ pages: Range<PageIndex>, _ place: String) throws(EngineError) -> PageCount {
        let count = pages.upperBound - pages.lowerBound
        guard pages.upperBound.rawValue <= pageCount.rawValue, count > .zero, count.bytes.int <= BackupFrame.longestPayload else {
            throw BackupFrame.violation("pages \(pages.lowerBound)..<\(pages.upperBound) of \(pageCount)", place)
        }
        return count
    }

    /// Ends everything: no frame counts any more, whatever is still on its way.
    mutating func close() {
        isClosed = true
        connection += 1
        shadow?.close()
    }

    /// Refuses all connections but the last.
    private func check(_ connection: Int, _ place: String) throws(EngineError) {
        guard connection == self.connection else {
            throw EngineError(
                .refused, "another connection has taken over", remedy: "Stop this machine if another process has made that one.", place: place)
        }
    }
}
