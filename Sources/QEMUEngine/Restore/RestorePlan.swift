// Whether a machine can load a checkpoint, and under which names its memory goes to it.
//
// Invariants:
// - A plan names every block of the checkpoint and every block of the machine exactly once, with equal lengths.
// - What does not fit is refused with both sides of the difference and the option that mends it.

import CheckpointCore
import MigrationStream
import Units

/// How a checkpoint goes into a machine.
struct RestorePlan: Sendable {
    /// One block of memory.
    struct Block: Sendable {
        var region: String
        /// The machine's name for it.
        var name: String
        var byteLength: UInt64
        /// The size of the machine's host pages.
        var pageBytes: UInt64
        /// True when its pages are zero unless something is put there.
        var isFresh: Bool
    }

    let machineType: String
    /// In the order of the checkpoint.
    let blocks: [Block]

    /// - Throws: `.mismatch` with what differs and how to mend it.
    init(_ record: MachineRecord, machine: IncomingMachine) throws(EngineError) {
        guard record.machineType == machine.machineType else {
            throw Self.wrongMachine(record.machineType, machine.machineType)
        }
        guard record.virtualCPUs == machine.virtualCPUs else {
            throw EngineError(
                .mismatch, "the checkpoint was taken with \(record.virtualCPUs) vCPUs, this command line makes \(machine.virtualCPUs)",
                remedy: "Use -smp \(record.virtualCPUs).")
        }
        machineType = record.machineType
        blocks = try Self.pair(record.memoryBlocks, machine)
        try Self.checkDisks(record.disks, machine.diskBytes)
    }

    /// For a machine that is being restored already, from the note that it keeps.
    /// - Throws: `.mismatch` when the note is of another checkpoint.
    init(_ record: MachineRecord, of checkpoint: CheckpointID, note: RestoreNote) throws(EngineError) {
        guard note.checkpoint == checkpoint, note.blocks.map(\.byteLength) == record.memoryBlocks.map(\.byteLength) else {
            throw EngineError(
                .mismatch, "the machine is being restored from checkpoint \(note.checkpoint), and this is \(checkpoint)",
                remedy: "`ckstore list --json` shows names and identities.")
        }
        machineType = record.machineType
        blocks = zip(record.memoryBlocks, note.blocks).map { block, there in
            Block(region: block.region, name: there.name, byteLength: block.byteLength, pageBytes: there.pageBytes, isFresh: false)
        }
    }

    static func wrongMachine(_ wanted: String, _ given: String) -> EngineError {
        EngineError(
            .mismatch, "the checkpoint was taken with machine \(wanted), this command line makes \(given)",
            remedy: "Use -machine \(wanted).")
    }

    /// The blocks as the stream lists them.
    /// - Parameter showsHugePages: true for a destination that can do postcopy, which expects their sizes.
    func streamBlocks(showsHugePages: Bool) -> [StreamRAMBlock] {
        blocks.map { block in
            StreamRAMBlock(
                name: block.name, byteLength: ByteCount(block.byteLength), pageBytes: showsHugePages ? block.pageBytes : nil)
        }
    }

    // MARK: memory

    private static func pair(
        _ wanted: [MachineRecord.MemoryBlock], _ machine: IncomingMachine
    ) throws(EngineError) -> [Block] {
        var left = machine.blocks
        var pairs: [IncomingMachine.Block?] = wanted.map { block in
            left.firstIndex { $0.name == block.name }.map { left.remove(at: $0) }
        }
        let unpaired = pairs.indices.filter { pairs[$0] == nil }
        if unpaired.count == 1, left.count == 1 {
            // The main memory goes by the name of its backend, or by the machine's own.
            pairs[unpaired[0]] = left.removeFirst()
        }
        if let missing = pairs.firstIndex(where: { $0 == nil }) {
            let block = wanted[missing]
            throw EngineError(
                .mismatch, "the checkpoint has the RAM block \(block.name) of \(size(block.byteLength)), which this command line does not make",
                remedy: "Use the options that the machine was started with.", place: block.name)
        }
        if let extra = left.first {
            throw EngineError(
                .mismatch, "this command line makes the RAM block \(extra.name) of \(size(extra.usedBytes)), which the checkpoint has not",
                remedy: "Use the options that the machine was started with.", place: extra.name)
        }
        var blocks: [Block] = []
        for (block, match) in zip(wanted, pairs.compactMap { $0 }) {
            try checkLength(block, match)
            blocks.append(
                Block(
                    region: block.region, name: match.name, byteLength: block.byteLength, pageBytes: match.pageBytes,
                    isFresh: machine.freshBlocks.contains(match.name)))
        }
        return blocks
    }

    /// Tables that firmware fills may have another length than when the machine started, as far as there is room.
    private static func checkLength(_ block: MachineRecord.MemoryBlock, _ match: IncomingMachine.Block) throws(EngineError) {
        let canGrow = match.totalBytes > match.usedBytes
        guard block.byteLength == match.usedBytes || (canGrow && block.byteLength <= match.totalBytes) else {
            let names = block.name == match.name ? block.name : "\(block.name) (here: \(match.name))"
            throw EngineError(
                .mismatch,
                "the checkpoint's RAM block \(names) has \(size(block.byteLength)), this command line gives it \(size(match.usedBytes))",
                remedy: match.usedBytes >= 1 << 20 ? "Use -m \(block.byteLength >> 20)M, and a memory backend of that size." : "",
                place: match.name)
        }
        guard block.byteLength % match.pageBytes == 0 else {
            throw EngineError(
                .mismatch, "the RAM block \(match.name) of \(size(block.byteLength)) is no whole number of its host pages of \(size(match.pageBytes))",
                remedy: "Use smaller host pages.", place: match.name)
        }
    }

    // MARK: disks

    /// Each disk of the checkpoint needs a device whose image has its length.
    private static func checkDisks(_ disks: [MachineRecord.Disk], _ present: [UInt64]) throws(EngineError) {
        var left = present
        for disk in disks {
            guard let match = left.firstIndex(of: disk.byteLength) else {
                throw EngineError(
                    .mismatch, "the checkpoint's disk \(disk.name) has \(size(disk.byteLength)), and this command line attaches no image of that length for it",
                    remedy: "Attach the file that it is restored to, as raw: -drive file=…,format=raw.", place: disk.name)
            }
            left.remove(at: match)
        }
    }

    /// "512 MiB", or bytes where that is not whole.
    static func size(_ bytes: UInt64) -> String {
        for (unit, name) in [(UInt64(1) << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")] where bytes >= unit && bytes % unit == 0 {
            return "\(bytes / unit) \(name)"
        }
        return "\(bytes) bytes"
    }
}
