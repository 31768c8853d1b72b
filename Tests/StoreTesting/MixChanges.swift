// Random changes to the regions of a checkpoint that is being saved.
//
// Invariant: what is returned is what was put, applied to the parent's bytes.

import CheckpointStore
import FaultHarness
import StoreFormat
import Units

/// Fills writers with regions.
struct MixChanges {
    var random: SeededGenerator
    let maximumPages: Int

    /// Adds regions to `writer`: changed, taken over, made longer or shorter, left out. Returns them, and how many were taken over.
    mutating func fill(_ writer: CheckpointWriter, over old: ModelCheckpoint) throws -> (ModelCheckpoint, inherited: Int) {
        var regions: ModelCheckpoint = [:]
        var inherited = 0
        for (name, kind) in [("ram", RegionKind.memory), ("disk", .disk), ("state", .state)] where name == "ram" || random.chance(2, in: 3) {
            if let bytes = old[name], random.chance(1, in: 4) {
                try writer.inheritRegion(name)
                regions[name] = bytes
                inherited += 1
            } else {
                regions[name] = try change(name, kind, old[name] ?? [], writer)
            }
        }
        return (regions, inherited)
    }

    private mutating func change(_ name: String, _ kind: RegionKind, _ old: [UInt8], _ writer: CheckpointWriter) throws -> [UInt8] {
        var bytes = old
        if old.isEmpty || random.chance(1, in: 5) {
            let pages = random.chance(1, in: 10) ? 0 : 1 + random.below(maximumPages)
            let length = max(0, pages * pageSize - (kind == .memory ? 0 : random.below(pageSize)))
            bytes = Array(bytes.prefix(length)) + [UInt8](repeating: 0, count: max(0, length - bytes.count))
        }
        let handle = try writer.addRegion(name, kind: kind, byteLength: ByteCount(bytes.count))
        let pages = (bytes.count + pageSize - 1) / pageSize
        guard pages > 0 else { return bytes }
        switch random.below(4) {
        case 0:
            // All of it, from memory: the store must find what has changed.
            for _ in 0..<random.below(20) { change(random.below(pages), &bytes) }
            try handle.write(bytes, isStable: random.chance(1, in: 2))
        case 1:
            let low = random.below(pages)
            let high = min(pages, low + 1 + random.below(600))
            for page in low..<high { change(page, &bytes) }
            try handle.write(Array(bytes[low * pageSize..<min(high * pageSize, bytes.count)]), at: PageIndex(low))
        case 2:
            let whole = bytes.count / pageSize
            for _ in 0..<random.below(60) where whole > 0 {
                let page = random.below(whole)
                change(page, &bytes)
                try handle.put(page: PageIndex(page), Array(bytes[page * pageSize..<(page + 1) * pageSize]))
            }
        default:
            let low = random.below(pages)
            let high = low + random.below(pages - low + 1)
            try handle.putZeros(PageIndex(low)..<PageIndex(high))
            let end = min(high * pageSize, bytes.count)
            if low * pageSize < end { bytes.replaceSubrange(low * pageSize..<end, with: repeatElement(0, count: end - low * pageSize)) }
        }
        return bytes
    }

    private mutating func change(_ page: Int, _ bytes: inout [UInt8]) {
        let content = makePage(&random)
        let end = min((page + 1) * pageSize, bytes.count)
        bytes.replaceSubrange(page * pageSize..<end, with: content[..<(end - page * pageSize)])
    }
}
