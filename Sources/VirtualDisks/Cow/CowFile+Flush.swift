// Making a copy-on-write file's state durable, and finding it again.
//
// Invariant: the order is data, map pages, flush, headers, flush. So a header that can be read names map pages that are durable, and
// these name data that is.

import CheckpointCore
import Threading
import Units

extension CowFile {
    /// Makes everything that was written before durable. Returns at once when nothing was.
    ///
    /// - Throws: `.noSpace`, `.ioFailed`. The file can be read afterwards, but neither written nor flushed any more.
    public func flush() throws(EngineError) {
        guard let (snapshot, header, pair) = try begin() else { return }
        do throws(EngineError) {
            for page in snapshot.pages { try write(page.bytes, at: layout.mapPage(page.chunk, twin: page.twin)) }
            // Data that was written has changed a map page.
            if !snapshot.pages.isEmpty { try storage.flush() }
            // One copy is enough to find the state again; the other guards against damage.
            for copy in 0..<2 { try write(header.encoded, at: CowLayout.header(pair: pair, copy: copy)) }
            try storage.flush()
        } catch {
            let failure = error
            state.withLock { state in
                state.isFlushing = false
                state.failure = failure
            }
            state.wake()
            throw failure
        }
        state.withLock { state in
            state.map.settle(snapshot)
            state.generation = header.generation
            state.pair = pair
            state.isFlushing = false
        }
        state.wake()
    }

    /// Takes the picture of the state that is to become durable; nil when there is nothing new.
    private func begin() throws(EngineError) -> (CowMap.Snapshot, CowHeader, pair: Int)? {
        try state.waitFor { (state) throws(EngineError) -> Void? in
            if let failure = state.failure { throw failure }
            guard !state.isFlushing else { return nil }
            state.isFlushing = true
            // Who is writing finishes: a hash in the picture must be that of the bytes in the file.
            state.isTakingSnapshot = true
            return ()
        }
        let result: (CowMap.Snapshot, CowHeader, pair: Int)? = state.waitFor { state in
            guard state.writerCount == 0 else { return nil }
            state.isTakingSnapshot = false
            guard state.map.isChanged || state.isHeaderChanged else {
                state.isFlushing = false
                return .some(nil)
            }
            let generation = state.nextGeneration
            state.nextGeneration = generation.next
            state.isHeaderChanged = false
            let snapshot = state.map.snapshot(generation, id: id)
            let header = CowHeader(
                state: state.mergeState, generation: generation, id: id, parent: state.parent, geometry: geometry,
                chunkCount: snapshot.chunkCount, mapHash: snapshot.mapHash)
            return (snapshot, header, 1 - state.pair)
        }
        state.wake()
        return result
    }

    private func write(_ page: [UInt8], at place: MediumOffset) throws(EngineError) {
        let result: Result<Void, EngineError> = unsafe page.withUnsafeBytes { bytes in
            do throws(EngineError) { return .success(unsafe try storage.write(at: place, bytes)) } catch { return .failure(error) }
        }
        try result.get()
    }
}

// MARK: Opening

extension CowFile {
    /// Like the other `open`, on any storage.
    public static func open(on storage: any CowStorage) throws(EngineError) -> CowFile {
        let (header, pair, page) = try newestHeader(storage)
        let layout = CowLayout(header.geometry)
        var state = FileState(map: CowMap(layout), mergeState: header.state, parent: header.parent, generation: header.generation, pair: pair)
        var newest = header.generation
        for chunk in (0..<header.chunkCount).lazy.map({ ChunkIndex($0) }) { try load(chunk, from: storage, header, &state.map, &newest) }
        guard state.map.mapHash == header.mapHash else { throw damage("a map page is damaged or of another state", storage) }
        state.isHeaderChanged = false
        state.nextGeneration = newest.next
        try settle(page, pair, storage)
        return CowFile(storage, id: header.id, state.map, state)
    }

    /// Makes the state that was found durable: it may have been found in the page cache alone, and what is written next must not be durable
    /// before it is. The header is written again, since a flush that has failed leaves pages that no later flush writes.
    private static func settle(_ page: [UInt8], _ pair: Int, _ storage: any CowStorage) throws(EngineError) {
        let result: Result<Void, EngineError> = unsafe page.withUnsafeBytes { bytes in
            Result { () throws(EngineError) in
                for copy in 0..<2 { unsafe try storage.write(at: CowLayout.header(pair: pair, copy: copy), bytes) }
            }
        }
        try result.get()
        try storage.flush()
    }

    /// Reads a chunk's map page; `newest` becomes the newest generation that was seen anywhere.
    private static func load(
        _ chunk: ChunkIndex, from storage: any CowStorage, _ header: CowHeader, _ map: inout CowMap, _ newest: inout Generation
    ) throws(EngineError) {
        var best: (page: CowMapPage, checksum: Hash128, twin: Int)?
        var hasLaterPage = false
        for twin in 0..<2 {
            let bytes = try readPage(storage, at: map.layout.mapPage(chunk, twin: twin))
            guard let (page, checksum) = CowMapPage.decode(bytes, map.layout, id: header.id, chunk: chunk) else { continue }
            newest = max(newest, page.generation)
            if page.generation > header.generation {
                // Of a flush that did not come to its end.
                hasLaterPage = true
            } else if page.generation > best?.page.generation ?? Generation(UInt64(0)) {
                best = (page, checksum, twin)
            }
        }
        guard let best else { throw damage("map page \(chunk) is damaged, or the file is truncated", storage) }
        guard map.load(best.page, checksum: best.checksum, twin: best.twin) else { throw damage("a block group is there twice", storage) }
        // It would count once the header's generation is greater: the next flush writes over it.
        if hasLaterPage { map.rewrite(chunk) }
    }

    private static func damage(_ reason: String, _ storage: any CowStorage) -> EngineError {
        EngineError(
            .corrupt, reason, remedy: "Look after the medium; the disk can be brought back only from a checkpoint.", place: storage.name)
    }

    private static func newestHeader(_ storage: any CowStorage) throws(EngineError) -> (CowHeader, pair: Int, page: [UInt8]) {
        var best: (header: CowHeader, pair: Int, page: [UInt8])?
        var otherVersion: UInt32?
        for pair in 0..<2 {
            for copy in 0..<2 {
                let page = try readPage(storage, at: CowLayout.header(pair: pair, copy: copy))
                switch CowHeader.decode(page) {
                case .header(let header):
                    if let best, best.header.generation >= header.generation { continue }
                    best = (header, pair, page)
                case .otherVersion(let version): otherVersion = version
                case .invalid: break
                }
            }
        }
        // Headers lie on both sides of a truncation that leaves some: an older one must not pass for the newest.
        let isWhole = try isPage(storage, at: CowLayout.header(pair: 1, copy: 1))
        if let best, isWhole { return best }
        if let otherVersion {
            throw EngineError(
                .unsupported, "a copy-on-write file of version \(otherVersion)", remedy: "Use the version of ckstore that wrote it.",
                place: storage.name)
        }
        throw damage("no copy-on-write file, or its headers are damaged", storage)
    }

    private static func isPage(_ storage: any CowStorage, at place: MediumOffset) throws(EngineError) -> Bool {
        let page = PrivateBytes(CowLayout.headerSize)
        return unsafe try storage.read(at: place, into: page.bytes) == CowLayout.headerSize
    }

    /// A page of 4096 bytes; zeros beyond the file's end.
    private static func readPage(_ storage: any CowStorage, at place: MediumOffset) throws(EngineError) -> [UInt8] {
        let page = PrivateBytes(CowLayout.mapPageSize)
        _ = unsafe try storage.read(at: place, into: page.bytes)
        return unsafe [UInt8](page.bytes)
    }
}
