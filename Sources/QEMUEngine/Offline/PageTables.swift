// The guest kernel's mappings, from its page tables.
//
// Invariants:
// - Only the upper half of the address space is looked at: a program's mappings are its own affair, and would hide physical addresses.
// - Tables come from the guest and may be anything: a walk that finds too many of them, or too many
//   mappings, is given up whole, and whatever leads out of memory is left out.

import CheckpointCore
import Units

/// Walks page tables of four or five levels.
struct PageTables {
    private let memory: GuestMemoryMap
    private var segments: [CoreFile.Segment] = []
    private var tablesLeft = 1 << 18
    private var isGivenUp: Bool { tablesLeft == 0 || segments.count > CoreFile.maximumSegments }
    private static let addressMask: UInt64 = 0x000f_ffff_ffff_f000

    /// What the kernel has mapped, by virtual address, joined where it goes on.
    ///
    /// A CPU in a program may have tables with little of the kernel in them, those of the kernel beside them: of all that the CPUs lead to,
    /// the tables that map most count.
    /// - Throws: `.unsupported` when no CPU translates addresses by tables of four or five levels; what the store throws.
    static func kernelSegments(_ cpus: [VirtualCPU], _ memory: GuestMemoryMap) throws(EngineError) -> [CoreFile.Segment] {
        var (best, isAnyGivenUp) = ([CoreFile.Segment](), false)
        var roots: Set<UInt64> = []
        for cpu in cpus where cpu.isInLongMode {
            let root = cpu.control[3] & addressMask
            for root in [root, root & ~0x1000] where roots.insert(root).inserted {
                var walk = PageTables(memory: memory)
                try walk.table(root, level: cpu.hasFiveLevels ? 5 : 4, base: 0, isRoot: true)
                let bytes = { (segments: [CoreFile.Segment]) in segments.reduce(UInt64(0)) { $0 &+ $1.memory.byteLength } }
                isAnyGivenUp = isAnyGivenUp || walk.isGivenUp
                if !walk.isGivenUp, bytes(walk.segments) > bytes(best) { best = walk.segments }
            }
        }
        guard !roots.isEmpty else {
            throw EngineError(
                .unsupported, "no virtual CPU runs in 64-bit mode, so that there are no mappings of a kernel to be found",
                remedy: "Export without them.")
        }
        guard !best.isEmpty || !isAnyGivenUp else {
            throw EngineError(
                .unsupported, "the guest's kernel has more mappings than a core can list, or its page tables make no sense",
                remedy: "Export without them.")
        }
        return best
    }

    private init(memory: GuestMemoryMap) { self.memory = memory }

    /// Goes through one table, whose first entry translates `base`.
    private mutating func table(_ address: UInt64, level: Int, base: UInt64, isRoot: Bool = false) throws(EngineError) {
        guard !isGivenUp, let entries = try memory.words(at: address) else { return }
        tablesLeft -= 1
        let shift = UInt64(12 + 9 * (level - 1))
        // The upper half begins in the middle of the root, and its addresses have all bits above set.
        let signBits: UInt64 = isRoot ? ~((1 << (shift + 9)) - 1) : 0
        for index in (isRoot ? 256 : 0)..<512 {
            let entry = entries[index]
            guard entry & 1 != 0 else { continue }
            let virtual = base | signBits | UInt64(index) << shift
            let isLarge = level == 1 || (level <= 3 && entry & 0x80 != 0)
            if isLarge {
                map(virtual, entry & Self.addressMask & ~((1 << shift) - 1), byteLength: 1 << shift)
            } else {
                try table(entry & Self.addressMask, level: level - 1, base: virtual)
            }
        }
    }

    /// Adds the parts of a mapping that are memory.
    private mutating func map(_ virtual: UInt64, _ physical: UInt64, byteLength: UInt64) {
        var done: UInt64 = 0
        while done < byteLength {
            guard let range = memory.range(at: physical + done) else {
                // On to the next range, if that is within.
                guard let next = memory.ranges.first(where: { $0.physicalAddress > physical + done }),
                    next.physicalAddress < physical + byteLength
                else { return }
                done = next.physicalAddress - physical
                continue
            }
            let length = min(byteLength - done, range.physicalAddress + range.byteLength - (physical + done))
            let part = MachineRecord.PhysicalRange(
                block: range.block, blockOffset: range.blockOffset + (physical + done - range.physicalAddress),
                physicalAddress: physical + done, byteLength: length)
            add(CoreFile.Segment(virtualAddress: virtual + done, memory: part))
            done += length
        }
    }

    /// Joins it with the one before where that goes on in the same block.
    ///
    /// Memory that is mapped again and again in a row is listed where it is first: Linux maps the page of its 16-bit return stacks
    /// 65,536 times.
    private mutating func add(_ segment: CoreFile.Segment) {
        guard let last = segments.last else { return segments.append(segment) }
        if last.memory == segment.memory { return }
        let (before, next) = (last.memory, segment.memory)
        guard last.virtualAddress &+ before.byteLength == segment.virtualAddress, before.block == next.block,
            before.physicalAddress + before.byteLength == next.physicalAddress,
            before.blockOffset + before.byteLength == next.blockOffset
        else { return segments.append(segment) }
        segments[segments.count - 1].memory.byteLength += next.byteLength
    }
}
