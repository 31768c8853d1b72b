// Writing buffers to the medium beside the work that fills them.
//
// Invariant: memory is bounded by the number of buffers: whoever needs one waits for a write to end.

import Media
import Threading
import Units

/// A bounded pool of buffers and the threads that write them. Thread-safe.
///
/// With no threads, `submit` writes before it returns: media that are memory gain nothing by more
/// threads, and simulated ones must be touched by the calling thread alone.
final class WriteQueue: Sendable {
    private struct Job {
        var buffer: AlignedBuffer
        var count: Int
        var offset: MediumOffset
    }
    private struct State {
        var free: [AlignedBuffer] = []
        var made = 0
        var jobs: [Job] = []
        var running = 0
        var failure: StoreError?
        var isClosing = false
    }

    private let medium: any Medium
    private let bufferCount: Int
    private let bufferBytes: Int
    private let state = Lock(State())
    private let isInline: Bool
    private let threads: Lock<[PlainThread]>

    init(medium: any Medium, threads threadCount: Int, buffers: Int, bufferBytes: Int) {
        self.medium = medium
        bufferCount = buffers
        self.bufferBytes = bufferBytes
        isInline = threadCount == 0
        threads = Lock([])
        let started = (0..<threadCount).compactMap { _ in PlainThread { [self] in run() } }
        threads.withLock { $0 = started }
    }

    /// An empty buffer; waits for one where all are in use.
    func takeBuffer() throws(StoreError) -> AlignedBuffer {
        try state.waitFor { (state) throws(StoreError) in
            if let failure = state.failure { throw failure }
            if let buffer = state.free.popLast() { return buffer }
            guard state.made < bufferCount else { return nil }
            state.made += 1
            return AlignedBuffer(count: bufferBytes)
        }
    }

    /// Gives back a buffer that needs no writing.
    func giveBack(_ buffer: AlignedBuffer) {
        state.withLock { $0.free.append(buffer) }
        state.wake()
    }

    /// Writes the first `count` bytes of `buffer` at `offset`, now or soon, and takes the buffer back.
    func submit(_ buffer: AlignedBuffer, count: Int, at offset: MediumOffset) throws(StoreError) {
        let job = Job(buffer: buffer, count: count, offset: offset)
        try state.withLock { (state) throws(StoreError) in
            precondition(!state.isClosing, "the queue has been closed")
            if let failure = state.failure {
                state.free.append(buffer)
                throw failure
            }
            if !isInline { state.jobs.append(job) }
        }
        guard isInline else { return state.wake() }
        defer { giveBack(buffer) }
        do throws(StoreError) { try write(job) } catch {
            // What follows in the segment would be written as if this were there.
            state.withLock { $0.failure = $0.failure ?? error }
            throw error
        }
    }

    /// Waits until everything submitted is written. Throws the first error that any write met.
    func drain() throws(StoreError) {
        try state.waitFor { (state) throws(StoreError) -> Void? in
            guard state.jobs.isEmpty, state.running == 0 else { return nil }
            if let failure = state.failure { throw failure }
            return ()
        }
    }

    /// Ends the threads; what is still queued is dropped. The queue can't be used afterwards.
    func close() {
        state.withLock { state in
            state.isClosing = true
            state.jobs = []
        }
        state.wake()
        let started = threads.withLock { threads in
            defer { threads = [] }
            return threads
        }
        for thread in started { thread.join() }
    }

    private func write(_ job: Job) throws(StoreError) {
        try onMedium { () throws(MediumError) in
            unsafe try medium.write(at: job.offset, UnsafeRawBufferPointer(rebasing: job.buffer.bytes[0..<job.count]))
        }
    }

    private func run() {
        while true {
            let next: Job?? = state.waitFor { state in
                if state.isClosing { return .some(nil) }
                guard !state.jobs.isEmpty else { return nil }
                state.running += 1
                return .some(state.jobs.removeFirst())
            }
            guard let job = next.flatMap({ $0 }) else { return }
            var failure: StoreError?
            do { try write(job) } catch { failure = error }
            state.withLock { state in
                state.running -= 1
                state.failure = state.failure ?? failure
                state.free.append(job.buffer)
            }
            state.wake()
        }
    }
}
