// Telling a guest what its devices have done, and the part of its queues in checkpoints and rollbacks.
//
// Invariant: one thread delivers, one request after the other, in the order of their completion.

import CheckpointCore
import Threading
import Units

extension IOQueues {
    /// Delivers until the queues are closed.
    func deliver() {
        while let next = nextDelivery() {
            var status = next.status
            if status == .done, next.request.operation == .read { status = place(next) }
            processors[next.request.processor.int].complete(RequestCompletion(request: next.request.id, status: status))
            state.withLock { $0.isDelivering = false }
            state.wake()
        }
    }

    private func nextDelivery() -> QueuedRequest? {
        state.waitFor { state -> QueuedRequest?? in
            if state.isClosed { return .some(nil) }
            guard !state.isDeliveryStopped, let next = state.lists.nextDelivery() else { return nil }
            state.isDelivering = true
            return .some(next)
        }
    }

    /// Puts what was read into memory, tracked like any other write to it.
    private func place(_ queued: QueuedRequest) -> RequestCompletion.Status {
        let content = queued.content()
        let bytes = unsafe UnsafeRawBufferPointer(content.bytes)
        do throws(EngineError) {
            switch unsafe try memory.store(bytes, at: queued.request.address, through: rules.deviceMapping) {
            case .stored: return .done
            case .readOnly(let page): return .readOnlyTarget(page)
            }
        } catch { return .deviceFailed(error.description) }
    }

    /// Stops delivery and waits for the one that is under way. Harmless when it is stopped.
    func stopDelivery() {
        state.withLock { $0.isDeliveryStopped = true }
        state.waitFor { $0.isDelivering ? nil : () }
    }

    func resumeDelivery() {
        state.withLock { $0.isDeliveryStopped = false }
        state.wake()
    }

    /// Ends delivery, for good. Devices' answers are not looked at any more.
    func close() {
        state.withLock { $0.isClosed = true }
        state.wake()
    }

    // MARK: Checkpoint and rollback, delivery being stopped

    /// - Returns: how many held requests were let go, and how many buffers were freed.
    func checkpoint(releasing: Bool) -> (released: Int, freed: Int) {
        let (result, starts) = state.withLock { state in
            let heldBefore = state.lists.held.count
            let freed = state.lists.checkpoint(releasing: releasing)
            return ((heldBefore - state.lists.held.count, freed), startReady(&state))
        }
        run(starts)
        return result
    }

    /// - Returns: how many requests were forgotten, and how many will be delivered again.
    func rollBack() -> (discarded: Int, deliveredAgain: Int) {
        let (result, starts) = state.withLock { state in
            (state.lists.rollBack(), startReady(&state))
        }
        run(starts)
        return result
    }
}
