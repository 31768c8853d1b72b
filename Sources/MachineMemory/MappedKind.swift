// What the system says of memory that somebody else has mapped.
//
// Invariant: what can't be read is an error, never a guess.

import CheckpointCore
import Glibc
import Units

/// The kind of a piece of this process's memory.
struct MappedKind {
    var isShared: Bool
    /// The size of the pages that it is made of.
    var unit: ByteCount

    /// Looks a piece up in the list of mappings. O(mappings).
    init(of bytes: UnsafeRawBufferPointer, name: String) throws(EngineError) {
        let first = UInt64(UInt(bitPattern: bytes.baseAddress))
        let end = first + UInt64(bytes.count)
        guard first != 0, bytes.count > 0, first % UInt64(pageSize) == 0, bytes.count % pageSize == 0 else {
            throw EngineError(
                .invalidInput, "the memory does not consist of whole pages", remedy: "Allocate it with mmap or posix_memalign, and register whole pages.",
                place: name)
        }
        var next = first
        var found: MappedKind?
        var isInside = false
        for line in try SystemText.lines("/proc/self/smaps") {
            let fields = line.fields
            if let range = Self.range(fields), fields.count >= 5 {
                isInside = range.contains(next) && next < end
                guard isInside else { continue }
                guard fields[1].count == 4, fields[1][fields[1].startIndex + 1] == UInt8(ascii: "w") else {
                    throw EngineError(.invalidInput, "the memory at 0x\(String(next, radix: 16)) can't be written", place: name)
                }
                let isShared = fields[1].last == UInt8(ascii: "s")
                guard isShared || fields[4].text == "0" else {
                    throw EngineError(
                        .unsupported, "the memory is a private mapping of a file", remedy: "Map it as shared, or copy it into anonymous memory.", place: name)
                }
                guard found.map({ $0.isShared == isShared }) ?? true else { throw Self.mixed(name) }
                found = MappedKind(isShared: isShared, unit: found?.unit ?? .zero)
                next = min(range.upperBound, end)
            } else if isInside, fields.first?.text == "KernelPageSize:", fields.count == 3, let size = fields[1].number() {
                guard found!.unit == .zero || found!.unit == .kibibytes(size) else { throw Self.mixed(name) }
                found!.unit = .kibibytes(size)
            }
        }
        guard let found, next == end, found.unit > .zero else {
            throw EngineError(.invalidInput, "the memory is not mapped, or only partly", place: name)
        }
        guard first % found.unit.rawValue == 0, end % found.unit.rawValue == 0 else {
            throw EngineError(
                .invalidInput, "the memory lies in pages of \(found.unit) bytes and does not consist of whole ones",
                remedy: "Register whole pages.", place: name)
        }
        self = found
    }

    private init(isShared: Bool, unit: ByteCount) {
        self.isShared = isShared
        self.unit = unit
    }

    private static func mixed(_ name: String) -> EngineError {
        EngineError(.invalidInput, "the memory consists of mappings of several kinds", remedy: "Register each of them by itself.", place: name)
    }

    /// "7f00-7f10"; nil when the line is no mapping's first.
    private static func range(_ fields: [ArraySlice<UInt8>]) -> Range<UInt64>? {
        guard let ends = fields.first?.split(separator: UInt8(ascii: "-")), ends.count == 2,
            let low = ends[0].number(radix: 16), let high = ends[1].number(radix: 16), low < high
        else { return nil }
        return low..<high
    }

    /// The number behind a key of a file; nil when the key is not there.
    static func number(_ path: String, _ key: String) throws(EngineError) -> UInt64? {
        for line in try SystemText.lines(path) {
            let fields = line.fields
            if fields.count >= 2, fields[0].text == key { return fields[1].number() }
        }
        return nil
    }
}
