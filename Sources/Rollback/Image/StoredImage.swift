// The newest checkpoint on a medium, found and verified.
//
// Invariants:
// - Nothing is returned that has not been verified in a private copy.
// - Sizes that the medium names are checked against the medium's own before anything is allocated.

import CheckpointCore
import Media
import PageCodec
import Units

/// A checkpoint on a medium: its record, state and table. Pages are read when they are asked for.
struct StoredImage: Sendable {
    let record: ImageRecord
    let state: [UInt8]
    let table: ImageTable

    /// The lock byte that users of an image hold, see Formats/registry.md.
    static let lockRange = LockRange(start: 2)

    /// Takes the image's lock: exclusive for writing. Throws `.busy`.
    static func lock(_ medium: any Medium, _ mode: LockMode) throws(EngineError) {
        guard try !onMedium({ () throws(MediumError) in try medium.locks.tryLock(lockRange, mode) }) else { return }
        let holders = medium.locks.holders(of: lockRange).map(\.description).joined(separator: ", ")
        throw EngineError(
            .busy, "the rollback image is in use" + (holders.isEmpty ? "" : " by \(holders)"), remedy: "Close it there first.", place: medium.name)
    }

    static func unlock(_ medium: any Medium) throws(EngineError) {
        try onMedium { () throws(MediumError) in try medium.locks.unlock(lockRange) }
    }

    /// Finds the newest checkpoint; nil: there is none, and nothing else either.
    ///
    /// - Throws: `.mismatch` when the medium holds something else; `.corrupt` when the newest checkpoint is damaged, or all records are;
    ///   `.unsupported` for a newer version of the format.
    static func load(_ medium: any Medium) throws(EngineError) -> StoredImage? {
        guard let record = try newestRecord(medium) else { return nil }
        guard record.geometry.requiredSize <= medium.size else {
            throw EngineError(
                .corrupt, "the medium has \(medium.size) bytes and its rollback image needs \(record.geometry.requiredSize)",
                remedy: "It was cut off; bring it back to its size.", place: medium.name)
        }
        let state = AlignedBytes(count: record.stateLength.int)
        try read(medium, at: record.geometry.stateOffset(of: record.epoch), into: state)
        guard state.hash() == record.stateHash else { throw damaged(medium, "its device state is damaged") }
        let table = ImageTable(record.geometry)
        try read(medium, at: record.geometry.tableOffset(of: record.epoch), into: table.bytes)
        guard table.checksum == record.tableHash else { throw damaged(medium, "its table of pages is damaged") }
        return StoredImage(record: record, state: state.copy(0..<record.stateLength.int), table: table)
    }

    private static func newestRecord(_ medium: any Medium) throws(EngineError) -> ImageRecord? {
        var newest: ImageRecord?
        var brokenCount = 0
        var foreignCount = 0
        guard medium.size >= ByteCount(ImageGeometry.recordSlotCount * ImageGeometry.recordBytes) else {
            if medium.size == .zero { return nil }
            throw EngineError(.mismatch, "the medium holds no rollback image", remedy: remedyForOthers, place: medium.name)
        }
        for slot in 0..<ImageGeometry.recordSlotCount {
            let bytes = AlignedBytes(count: ImageGeometry.recordBytes)
            try read(medium, at: MediumOffset(slot * ImageGeometry.recordBytes), into: bytes)
            switch ImageRecord.decode(bytes) {
            case .empty: break
            case .broken: brokenCount += 1
            case .record(let record):
                // One that stands in the wrong place was misdirected there.
                guard ImageGeometry.recordOffsets(of: record.epoch).contains(MediumOffset(slot * ImageGeometry.recordBytes)) else {
                    brokenCount += 1
                    break
                }
                if record.epoch > newest?.epoch ?? .none { newest = record }
            case .unknownVersion(let version):
                throw EngineError(.unsupported, "the rollback image has version \(version)", remedy: "Use a newer ckstore.", place: medium.name)
            // Also what a power cut leaves of the first record of a slot.
            case .foreign: foreignCount += 1
            }
        }
        if newest == nil, foreignCount > 0 {
            throw EngineError(.mismatch, "the medium holds something else", remedy: remedyForOthers, place: medium.name)
        }
        if newest == nil, brokenCount > 0 { throw damaged(medium, "none of its records is whole") }
        return newest
    }

    private static let remedyForOthers = "Choose another medium, or have its content replaced if it is no longer needed."

    /// Reads pages as the table says and verifies each.
    /// - Throws: `.corrupt`, naming the page; `.store`.
    static func read(
        _ pages: Range<PageIndex>, of table: ImageTable, on medium: any Medium, into buffer: UnsafeMutableRawBufferPointer
    ) throws(EngineError) {
        precondition(buffer.count == (pages.upperBound - pages.lowerBound).bytes.int, "the buffer has the size of the pages")
        var start = pages.lowerBound
        while start < pages.upperBound {
            let isZero = table.hash(start) == .zero
            var end = start + PageCount(UInt64(1))
            while end < pages.upperBound, (table.hash(end) == .zero) == isZero, isZero || table.location(end) == table.location(start) {
                end = end + PageCount(UInt64(1))
            }
            let place = (start - pages.lowerBound).bytes.int..<(end - pages.lowerBound).bytes.int
            let target = unsafe UnsafeMutableRawBufferPointer(rebasing: buffer[place])
            if isZero {
                unsafe target.initializeMemory(as: UInt8.self, repeating: 0)
            } else {
                try unsafe read(medium, at: table.geometry.pageOffset(start, location: table.location(start)), into: target)
                try unsafe verify(start..<end, table, medium, UnsafeRawBufferPointer(target))
            }
            start = end
        }
    }

    private static func verify(
        _ pages: Range<PageIndex>, _ table: ImageTable, _ medium: any Medium, _ bytes: UnsafeRawBufferPointer
    ) throws(EngineError) {
        for number in 0..<(pages.upperBound - pages.lowerBound).int {
            let page = pages.lowerBound + PageCount(number)
            let content = unsafe UnsafeRawBufferPointer(rebasing: bytes[number * pageSize..<(number + 1) * pageSize])
            guard unsafe tableHash(content) == table.hash(page) else { throw damaged(medium, "page \(page) is damaged") }
        }
    }

    private static func read(_ medium: any Medium, at offset: MediumOffset, into buffer: UnsafeMutableRawBufferPointer) throws(EngineError) {
        try onMedium { () throws(MediumError) in try unsafe medium.read(at: offset, into: buffer) }
    }

    private static func read(_ medium: any Medium, at offset: MediumOffset, into bytes: AlignedBytes) throws(EngineError) {
        try unsafe bytes.withMutableBytes { buffer throws(EngineError) in try unsafe read(medium, at: offset, into: buffer) }
    }

    private static func damaged(_ medium: any Medium, _ what: String) -> EngineError {
        EngineError(.corrupt, "the rollback image can't be used: \(what)", remedy: "Use another copy of the checkpoint.", place: medium.name)
    }
}
