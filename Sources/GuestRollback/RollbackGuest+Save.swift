// A guest's checkpoint in a store, and a guest made from one.
//
// Invariants:
// - What is saved is the checkpoint, not the present state, while the guest runs on: old pages come from the log, finished requests from the kept
//   buffers.
// - A guest that was made with `releasesWhenSaved` has its writes let go only here: brought back from its newest save it finds no
//   write at its devices that it does not know of, and those that it knows as unfinished can be written again.

import CheckpointCore
import MachineMemory
import StoreFormat
import Threading
import Units

extension RollbackGuest {
    /// Saves the last checkpoint. The guest runs meanwhile; checkpoints and rollbacks of it wait, and so does whoever needs a forced one.
    ///
    /// Durable and visible when this returns. With a parent that is this guest's save before, only pages written since are put.
    ///
    /// - Throws: `.invalidInput` before the first checkpoint; `.store` when the store refuses or fails: nothing is left of it there, nothing is
    ///   let go.
    @discardableResult
    public func save(
        into store: any CheckpointDataStore, as checkpointName: String, parent: String? = nil
    ) throws(EngineError) -> CheckpointReceipt {
        try saved.withLock { (saved) throws(EngineError) in
            guard let states = saved.states, !saved.isTorn else {
                throw EngineError(.invalidInput, "there is no checkpoint to save", remedy: "Take one first.", place: name)
            }
            let sink = try store.begin(checkpointName, parent: parent)
            do throws(EngineError) {
                let isIncrement = sink.parentID != nil && sink.parentID == saved.lastSave
                try put(isIncrement ? memory.unsavedPages : PageRanges(memory.memory.allPages), in: sink)
                let image = GuestImage(
                    memoryPages: memory.memory.pageCount, states: states, readOnlyPages: saved.readOnlyPages,
                    requests: queues.savedRequests())
                try sink.putBlob(GuestImage.regionName, image.encoded())
                let receipt = try sink.commit()
                saved.lastSave = receipt.id
                memory.forgetUnsavedPages()
                queues.releaseSaved()
                return receipt
            } catch {
                sink.abort()
                throw error
            }
        }
    }

    private func put(_ pages: PageRanges, in sink: any CheckpointSink) throws(EngineError) {
        let guestMemory = memory.memory
        let region = try sink.addRegion(MachineRecord.memoryRegion(guestMemory.name), kind: .memory, byteLength: guestMemory.byteLength)
        // A unit at least, and not so much that a writer that waits for the log waits long.
        let step = PageCount(max(guestMemory.pagesPerUnit.int, 64))
        let buffer = TransferBuffer(byteLength: step.bytes)
        for range in pages.ranges {
            var first = range.lowerBound
            while first < range.upperBound {
                let piece = first..<min(first + step, range.upperBound)
                let bytes = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer.bytes[..<(piece.upperBound - piece.lowerBound).bytes.int])
                unsafe memory.copyCheckpointed(piece, into: bytes)
                unsafe try region.write(UnsafeRawBufferPointer(bytes), at: piece.lowerBound, isStable: true)
                first = piece.upperBound
            }
        }
    }

    /// Makes a guest from a saved checkpoint: memory, processors, requests. Its processors go on with its first `checkpoint`; then what was
    /// finished is delivered from the saved buffers, and what was not is carried out.
    ///
    /// - Parameters:
    ///   - memory: of the same name and size as the saved one; what is in it is lost.
    ///   - processors: as many as were saved.
    ///   - devices: those that the guest had, or their mirrors.
    /// - Throws: `.mismatch` when memory, processors or devices don't fit; `.corrupt`, `.unsupported`, `.store` when the checkpoint can't be read;
    ///   as making a guest does.
    public convenience init(
        _ name: String, restoring source: any CheckpointSource, memory: GuestMemory, processors: [any GuestProcessor],
        devices: [MirroredDevice] = [], options: GuestOptions = GuestOptions()
    ) throws(EngineError) {
        try self.init(
            name, restoring: source, memory: memory, processors: processors, devices: devices, options: options, rules: StandardGuestRules()
        )
    }

    package convenience init(
        _ name: String, restoring source: any CheckpointSource, memory: GuestMemory, processors: [any GuestProcessor],
        devices: [MirroredDevice],
        options: GuestOptions, rules: any GuestRules
    ) throws(EngineError) {
        let image = try GuestImage(try source.blob(GuestImage.regionName, limit: GuestImage.limit))
        let region = try source.region(MachineRecord.memoryRegion(memory.name))
        guard image.memoryPages == memory.pageCount, region.byteLength == memory.byteLength, image.states.count == processors.count else {
            throw EngineError(
                .mismatch, "\(image.memoryPages) pages and \(image.states.count) processors were saved",
                remedy: "Make a memory and processors like those.", place: name)
        }
        let all = unsafe memory.bytes(of: memory.allPages)
        unsafe try region.read(pages: memory.allPages, into: all)
        try self.init(name, memory: memory, processors: processors, devices: devices, options: options, rules: rules)
        do throws(EngineError) {
            for (processor, state) in zip(processors, image.states) { try processor.restore(state) }
            for range in image.readOnlyPages.ranges { try setReadOnly(range) }
            try queues.restore(image.requests)
        } catch {
            close()
            throw error
        }
    }
}

extension IOQueues {
    /// The requests that the checkpoint knows of, in the order of their issue.
    func savedRequests() -> [GuestImage.SavedRequest] {
        state.withLock { state in
            state.lists.save().map { queued in
                let status = queued.isSavedUnfinished ? nil : queued.status
                let buffer: TransferBuffer? =
                    switch queued.request.operation {
                    case .read: status == .done ? queued.content() : nil
                    case .write: status == nil ? queued.buffer : nil
                    case .flush: nil
                    }
                return GuestImage.SavedRequest(request: queued.request, status: status, buffer: buffer)
            }
        }
    }

    /// What was saved is durable: lets held requests go.
    func releaseSaved() {
        run(
            state.withLock { state in
                state.lists.releaseSaved()
                return startReady(&state)
            })
    }

    /// Takes over what a saved checkpoint knows of. Nothing starts before the first checkpoint.
    func restore(_ requests: [GuestImage.SavedRequest]) throws(EngineError) {
        for saved in requests { try check(saved.request) }
        state.withLock { state in
            for saved in requests { state.lists.restore(saved.request, buffer: saved.buffer, status: saved.status) }
            // What had to wait for another save when this one was made has to wait still: this guest may have to be made again from it.
            if options.releasesWhenSaved { state.lists.releaseSaved() } else { state.lists.release() }
        }
    }
}
