// Pending reads that are issued again, so that their bytes reach the checkpoint's memory as well as the machine's [system A, step 815;
// claims 17 and 25].
//
// Invariants:
// - Whoever submitted a read is told of its end only when what was read again has landed.
// - A read that can't be repeated fails the checkpoint, not the machine.

import CheckpointCore
import Units

extension VirtualDisk {
    /// Issues a pending read again if the rules say so at this moment. It ends here when it has completed and nothing is left to be waited for.
    func considerReissue(_ request: ActiveRequest, at moment: ReissueMoment) {
        // While the machine goes on, a read that completes may be about to be issued again by another thread: only that one may end it.
        func endUnlessReissued() { if moment == .originalCompleted { settle(request) } }
        guard let memory = state.withLock({ $0.checkpoint?.memory }), let buffer = request.buffer else { return endUnlessReissued() }
        let isCopied = buffer.eachPage.contains { memory.wasCopied(buffer.memory, $0) }
        guard rules.reissues(at: moment, anyPageCopied: isCopied) else { return endUnlessReissued() }
        var source = view([])
        let isFirst = state.withLock { state in
            if rules.reissueSource == .ongoing { source.overlays = state.overlays }
            guard !request.wasReissued else { return false }
            request.wasReissued = true
            request.isReissueUnderWay = true
            return true
        }
        guard isFirst else { return settle(request) }
        let bytes = PrivateBytes(buffer.byteCount.int)
        source.read(request.range, into: bytes.transferAll) { result in
            if case .success = result { self.land(bytes, buffer, memory) }
            self.state.withLock { state in
                request.isReissueUnderWay = false
                if case .failure(let error) = result { state.checkpoint?.reissueFailure = error }
            }
            self.settle(request)
        }
    }

    /// Pages that were copied get the bytes in their copies; the others have them in place already.
    private func land(_ bytes: PrivateBytes, _ buffer: GuestBuffer, _ memory: any CheckpointedMemory) {
        memory.withCopies(of: buffer) { pieces in
            for piece in pieces { unsafe piece.bytes.copyMemory(from: UnsafeRawBufferPointer(bytes.part(piece.range))) }
        }
    }

    /// Ends the request when both its own reading and what was read again are over.
    private func settle(_ request: ActiveRequest) {
        act { state in
            guard request.phase == .settling, !request.isReissueUnderWay else { return [] }
            return deliver(request, &state)
        }
    }
}
