// Whether a process still has its memory where it was: asked in every scan, so it has to be quick.

import CLiveMemory
import CheckpointCore
import Glibc
import Units

/// Looks whether a block is still mapped. Thread-safe.
final class MappingCheck: Sendable {
    private let block: SharedMemoryBlock
    private let maps: OwnedDescriptor

    init(_ block: SharedMemoryBlock) throws(EngineError) {
        self.block = block
        maps = try block.process.open("maps")
    }

    /// Throws `.notFound` when the process has other memory there by now, or none; `.exited`.
    func check() throws(EngineError) {
        let answer = try asksKernel()
        let isThere = if let answer { answer } else { try listed() }
        try block.process.checkRunning()
        guard isThere else { throw EngineError(.notFound, "the process has no such memory any more", place: block.process.place) }
    }

    /// By one question for each piece of the mapping; nil when the kernel does not answer questions.
    private func asksKernel() throws(EngineError) -> Bool? {
        let expected = block.mapping
        var address = expected.addresses.lowerBound
        while address < expected.addresses.upperBound {
            var found = ck_mapping()
            let result = unsafe ck_find_mapping(maps.number, address.rawValue, &found)
            switch result {
            case -ENOTTY: return nil
            case -ENOENT: return false
            case -ESRCH: throw EngineError(.exited, "the process has ended", place: block.process.place)
            default: try checked(result, "look at the process's mappings", place: block.process.place)
            }
            let offset = expected.fileOffset + (address - expected.addresses.lowerBound)
            guard found.is_shared, found.is_writable, found.start <= address.rawValue, found.end > address.rawValue,
                FileIdentity(major: found.major, minor: found.minor, inode: found.inode) == expected.file,
                found.file_offset + (address.rawValue - found.start) == offset.rawValue
            else { return false }
            address = TargetAddress(found.end)
        }
        return true
    }

    /// By the whole list.
    private func listed() throws(EngineError) -> Bool {
        let expected = block.mapping
        return try block.process.mappings().sharedRegions.contains { region in
            region.file == expected.file && region.addresses.lowerBound <= expected.addresses.lowerBound
                && region.addresses.upperBound >= expected.addresses.upperBound
                && region.fileOffset + (expected.addresses.lowerBound - region.addresses.lowerBound) == expected.fileOffset
        }
    }
}
