// A machine's memory as its disks see it during a checkpoint [815, 816].

import CheckpointCore
import MachineMemory
import Units
import VirtualDisks

/// All memory of one machine, each under copy on write. Thread-safe.
final class MarkedMemory: CheckpointedMemory, DeviceWriteObserver {
    let all: [CopyOnWriteMemory]

    init(_ memory: [GuestMemory], options: CopyOnWriteMemory.Options) throws(EngineError) {
        var all: [CopyOnWriteMemory] = []
        do throws(EngineError) {
            for memory in memory { all.append(try CopyOnWriteMemory(memory, options: options)) }
        } catch {
            for memory in all { memory.close() }
            throw error
        }
        self.all = all
    }

    private func marked(_ memory: GuestMemory) -> CopyOnWriteMemory {
        guard let marked = all.first(where: { $0.memory === memory }) else {
            preconditionFailure("disk requests of a machine concern its own memory")
        }
        return marked
    }

    func wasCopied(_ memory: GuestMemory, _ page: PageIndex) -> Bool { marked(memory).wasCopied(page) }

    func willBeWritten(_ memory: GuestMemory, _ pages: Range<PageIndex>) { marked(memory).noteWrite(pages) }

    func preserve(_ memory: GuestMemory, _ pages: Range<PageIndex>) { marked(memory).preserve(pages) }

    func withCopies(of buffer: GuestBuffer, _ body: ([CopiedPiece]) -> Void) {
        marked(buffer.memory).withCopies(of: buffer.pages) { copies in
            body(
                copies.map { copy in
                    let part = buffer.part(in: copy.page)
                    let start = (buffer.offset.int + part.lowerBound) - copy.page.int * pageSize
                    return unsafe CopiedPiece(
                        range: part, bytes: UnsafeMutableRawBufferPointer(rebasing: copy.bytes[start..<start + part.count]))
                })
        }
    }

    func close() { for memory in all { memory.close() } }
}
