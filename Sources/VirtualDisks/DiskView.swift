// A disk as overlays over a parent: where bytes are read from and written to.
//
// Invariants:
// - A view does not change; the files that it names stay usable as long as somebody holds it.
// - A group is read from the newest overlay that has it, else from the parent: an overlay hides what is below it, whatever is done there.
// - Writes go to the newest overlay. A group that it does not have is copied up as a whole before.

import CheckpointCore
import Threading
import Units

struct DiskView: Sendable {
    let parent: any DiskBackend
    /// Newest first.
    var overlays: [CowFile]
    let geometry: DiskGeometry
    let workers: any DiskWorkers

    /// Reads a range. `bytes` has its length.
    func read(_ range: Range<DiskOffset>, into bytes: TransferBytes, _ completion: @escaping DiskCompletion) {
        let pieces = pieces(of: range)
        let parts = PartCounter(pieces.count, completion)
        for piece in pieces {
            let target = bytes.part((piece.range.lowerBound - range.lowerBound).int..<(piece.range.upperBound - range.lowerBound).int)
            guard let overlay = piece.overlay else {
                parent.read(at: piece.range.lowerBound, into: target, parts.finished)
                continue
            }
            workers.run {
                parts.finished(
                    Result { () throws(EngineError) in
                        let isThere = unsafe try overlay.read(at: piece.range.lowerBound, into: target.bytes)
                        precondition(isThere, "a group never leaves an overlay")
                    })
            }
        }
    }

    /// Told that an overlay has failed, before the request that it fails completes.
    typealias OverlayFailed = @Sendable (EngineError) -> Void

    /// Writes a range. `bytes` has its length. Two writes that share a group must not be under way at once when there is an overlay.
    func write(
        _ range: Range<DiskOffset>, from bytes: TransferBytes, _ overlayFailed: @escaping OverlayFailed, _ completion: @escaping DiskCompletion
    ) {
        guard let top = overlays.first else { return parent.write(at: range.lowerBound, from: bytes, completion) }
        let groups = geometry.groups(of: range)
        let parts = PartCounter(groups.count, completion)
        for group in groups.lazy.map({ BlockGroup($0) }) {
            let whole = geometry.bytes(of: group)
            let piece = whole.clamped(to: range)
            let source = bytes.part((piece.lowerBound - range.lowerBound).int..<(piece.upperBound - range.lowerBound).int)
            guard piece != whole, !top.contains(group) else {
                workers.run { parts.finished(Self.write(piece, source, to: top, over: nil, overlayFailed)) }
                continue
            }
            let base = PrivateBytes(whole.byteCount.int).transferAll
            below.read(whole, into: base) { result in
                guard case .success = result else { return parts.finished(result) }
                workers.run { parts.finished(Self.write(piece, source, to: top, over: base, overlayFailed)) }
            }
        }
    }

    /// Makes everything that was written before durable, wherever it went.
    func flush(_ overlayFailed: @escaping OverlayFailed, _ completion: @escaping DiskCompletion) {
        parent.flush { result in
            guard case .success = result, !overlays.isEmpty else { return completion(result) }
            workers.run {
                completion(
                    Self.onOverlay(overlayFailed) { () throws(EngineError) in
                        for overlay in overlays.reversed() { try overlay.flush() }
                    })
            }
        }
    }

    private var below: DiskView { DiskView(parent: parent, overlays: Array(overlays.dropFirst()), geometry: geometry, workers: workers) }

    private static func write(
        _ range: Range<DiskOffset>, _ bytes: TransferBytes, to overlay: CowFile, over base: TransferBytes?, _ overlayFailed: OverlayFailed
    ) -> Result<Void, EngineError> {
        onOverlay(overlayFailed) { () throws(EngineError) in
            unsafe try overlay.write(
                at: range.lowerBound, UnsafeRawBufferPointer(bytes.bytes), over: base.map { unsafe UnsafeRawBufferPointer($0.bytes) })
        }
    }

    private static func onOverlay(_ failed: OverlayFailed, _ body: () throws(EngineError) -> Void) -> Result<Void, EngineError> {
        do throws(EngineError) {
            try body()
            return .success(())
        } catch {
            failed(error)
            return .failure(error)
        }
    }

    private struct Piece {
        /// Within one group, when it is an overlay's.
        var range: Range<DiskOffset>
        /// Nil: the parent's.
        var overlay: CowFile?
    }

    /// Who has which part; neighbours of the parent are one piece.
    private func pieces(of range: Range<DiskOffset>) -> [Piece] {
        guard !overlays.isEmpty else { return [Piece(range: range)] }
        var result: [Piece] = []
        for group in geometry.groups(of: range).lazy.map({ BlockGroup($0) }) {
            let piece = geometry.bytes(of: group).clamped(to: range)
            let overlay = overlays.first { $0.contains(group) }
            if overlay == nil, let last = result.last, last.overlay == nil {
                result[result.count - 1].range = last.range.lowerBound..<piece.upperBound
            } else {
                result.append(Piece(range: piece, overlay: overlay))
            }
        }
        return result
    }
}

/// Waits for the parts of a request, and completes it with the first failure among them, or with success.
private final class PartCounter: Sendable {
    private let state: Lock<(left: Int, failure: EngineError?)>
    private let completion: DiskCompletion

    init(_ count: Int, _ completion: @escaping DiskCompletion) {
        precondition(count > 0, "a request has parts")
        state = Lock((count, nil))
        self.completion = completion
    }

    @Sendable func finished(_ result: Result<Void, EngineError>) {
        let outcome: Result<Void, EngineError>? = state.withLock { state in
            if case .failure(let error) = result { state.failure = state.failure ?? error }
            state.left -= 1
            guard state.left == 0 else { return nil }
            return state.failure.map { .failure($0) } ?? .success(())
        }
        if let outcome { completion(outcome) }
    }
}
