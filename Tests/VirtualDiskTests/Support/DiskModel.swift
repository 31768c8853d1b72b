// What must be true of a disk and a memory that a checkpoint is taken of: FIG. 2's invariant [claim 23], with nothing asynchronous in it.

import Units
import VirtualDisks

struct DiskModel {
    /// As the machine sees them.
    var disk: [UInt8]
    var memory: [UInt8]
    /// As the checkpoint has to keep them; nil before its instant.
    var checkpointedDisk: [UInt8]?
    var checkpointedMemory: [UInt8]?
    /// What reads under way will bring, by their number: what is on the disk when they are issued.
    private var reads: [Int: (start: Int, bytes: [UInt8])] = [:]

    init(disk: [UInt8], memory: [UInt8]) {
        self.disk = disk
        self.memory = memory
    }

    mutating func submitWrite(at start: Int, _ bytes: [UInt8]) { disk.replaceSubrange(start..<start + bytes.count, with: bytes) }

    mutating func submitRead(_ number: Int, at start: Int, count: Int, into address: Int) {
        reads[number] = (address, Array(disk[start..<start + count]))
    }

    mutating func completeRead(_ number: Int) {
        let (start, bytes) = reads.removeValue(forKey: number)!
        memory.replaceSubrange(start..<start + bytes.count, with: bytes)
    }

    mutating func write(_ start: Int, _ bytes: [UInt8]) { memory.replaceSubrange(start..<start + bytes.count, with: bytes) }

    /// The instant: pending writes are in the disk already, and pending reads are added to the memory.
    mutating func takeCheckpoint() {
        checkpointedDisk = disk
        var result = memory
        for (start, bytes) in reads.values { result.replaceSubrange(start..<start + bytes.count, with: bytes) }
        checkpointedMemory = result
    }
}
