// Writing a copy-on-write file's groups into its parent, and doing so again after a crash.
//
// Invariants:
// - What is merged is durable in the file before the first byte of the parent changes, and durable in the parent before the file says so.
//   So a merge that was cut off anywhere is done again from its start, with the same result.
// - Nobody writes the file while it is merged.

import CheckpointCore
import Units

/// What a recovery did.
public struct RecoveryReport: Sendable, Equatable {
    /// Files that had still to be merged.
    public var mergedFiles = 0
    /// Block groups that were written into the image.
    public var mergedGroups = 0
}

extension CowFile {
    /// Merges all groups; durable on return. Harmless when that was done before.
    ///
    /// - Returns: how many groups were written.
    /// - Throws: `.corrupt`, `.ioFailed`, `.noSpace`: some of the parent's groups may be written then. A merge that is tried again goes on
    ///   as if nothing had been.
    func merge(into parent: any DiskBackend) throws(EngineError) -> Int {
        guard mergeState != .merged else { return 0 }
        try record { $0.mergeState = .merging }
        let count = try copyGroups(into: parent)
        try parent.flushNow()
        try markMerged()
        return count
    }

    /// Everything that it has is durable in the image. Durable on return.
    func markMerged() throws(EngineError) { try record { $0.mergeState = .merged } }

    /// Writes all groups into the parent, and no more. Works as well for a file that can't be written any more.
    func copyGroups(into parent: any DiskBackend) throws(EngineError) -> Int {
        let groups = groups
        let buffer = PrivateBytes(geometry.groupSize.int)
        for group in groups {
            let bytes = geometry.bytes(of: group)
            let part = buffer.transferAll.part(0..<bytes.byteCount.int)
            let isThere = unsafe try read(at: bytes.lowerBound, into: part.bytes)
            precondition(isThere, "a group never leaves an overlay")
            try parent.writeNow(at: bytes.lowerBound, from: part)
        }
        return groups.count
    }

    /// The file below this one has been merged: this one lies on the image now. Durable on return.
    func layOnImage() throws(EngineError) { try record { $0.parent = nil } }

    /// Brings a disk's image up to date with what a crash has left: merges all its copy-on-write files, in their order. Durable on return;
    /// the files can be removed then. When it is cut off, it is done again.
    ///
    /// - Parameters:
    ///   - files: all that the disk had, in any order.
    ///   - parent: the disk's image.
    /// - Throws: `.mismatch` when a file is not of this disk; `.notFound` when one that lies below another is missing; `.invalidInput`
    ///   when two lie on the same one; what reading and writing throw.
    @discardableResult
    public static func recover(_ files: [CowFile], into parent: any DiskBackend) throws(EngineError) -> RecoveryReport {
        for file in files where file.geometry.diskLength != parent.byteLength {
            throw EngineError(
                .mismatch, "a file for a disk of \(file.geometry.diskLength) bytes, not \(parent.byteLength)",
                remedy: "Recover it into the image that it was made for.", place: file.name)
        }
        var report = RecoveryReport()
        for file in try ordered(files) {
            report.mergedFiles += 1
            report.mergedGroups += try file.merge(into: parent)
        }
        return report
    }

    /// Those that have something to merge, the lowest first.
    private static func ordered(_ files: [CowFile]) throws(EngineError) -> [CowFile] {
        let isLeft: (CowFile) -> Bool = { $0.mergeState != .merged && $0.groupCount > 0 }
        let skipped = files.filter { !isLeft($0) }
        // What a file lies on, when those that have nothing to merge are left out.
        func base(_ file: CowFile) -> OverlayID? {
            var parent = file.parent
            // As many steps as there are files: damaged ones might go in a circle.
            for _ in skipped {
                guard let below = skipped.first(where: { $0.id == parent }) else { break }
                parent = below.mergeState == .merged ? nil : below.parent
            }
            return parent
        }
        var left = files.filter(isLeft)
        var result: [CowFile] = []
        while !left.isEmpty {
            let below = result.last?.id
            let next = left.filter { base($0) == below }
            guard next.count <= 1 else {
                throw EngineError(
                    .invalidInput, "two copy-on-write files lie on the same one", remedy: "Give only those of this disk.",
                    place: next[1].name)
            }
            guard let file = next.first else {
                throw EngineError(
                    .notFound, "the copy-on-write file \(left[0].parent.map { "\($0)" } ?? "below it") that it lies on is missing",
                    remedy: "Give all files of the disk.", place: left[0].name)
            }
            result.append(file)
            left.removeAll { $0 === file }
        }
        return result
    }
}
