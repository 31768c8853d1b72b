// The mappings of a process, as /proc/PID/maps lists them.
//
// Invariant: a line that does not have exactly the form the kernel documents is an error and not skipped.

import CheckpointCore
import Units

/// An address in another process.
public struct TargetAddress: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public static func + (a: TargetAddress, b: ByteCount) -> TargetAddress {
        TargetAddress(a.rawValue + b.rawValue)
    }
    /// The distance from `b` up to `a`; `b` must not lie behind `a`.
    @inlinable public static func - (a: TargetAddress, b: TargetAddress) -> ByteCount {
        ByteCount(a.rawValue - b.rawValue)
    }
    /// In hexadecimal, as everybody writes addresses.
    public var description: String { "0x" + String(rawValue, radix: 16) }
}

/// Which file a mapping shows: file system and inode.
public struct FileIdentity: Hashable, Sendable {
    /// The device's numbers, as `stat` has them.
    public var major: UInt32
    public var minor: UInt32
    public var inode: UInt64
}

/// One mapping of a process.
public struct MemoryMapping: Hashable, Sendable {
    public var addresses: Range<TargetAddress>
    public var isReadable: Bool
    public var isWritable: Bool
    public var isExecutable: Bool
    /// Writes reach the file and everybody else who maps it.
    public var isShared: Bool
    /// Where in the file it starts.
    public var fileOffset: ByteCount
    /// Which file; nil for memory that is no file's.
    public var file: FileIdentity?
    /// The file's path as the kernel shows it, or a name in brackets, or empty. Not for opening: the file may have been removed.
    public var path: String

    /// Its size.
    public var length: ByteCount { addresses.upperBound - addresses.lowerBound }

    /// Parses one line: `start-end perms offset major:minor inode [path]`; nil when it does not have that form.
    init?(line: ArraySlice<UInt8>) {
        let blank = UInt8(ascii: " ")
        let parts = line.split(separator: blank, maxSplits: 5, omittingEmptySubsequences: false)
        guard parts.count >= 5, let addresses = Self.addresses(parts[0]), let offset = parts[2].number(radix: 16) else { return nil }
        let device = parts[3].split(separator: UInt8(ascii: ":"), omittingEmptySubsequences: false)
        guard device.count == 2, let major = device[0].number(radix: 16).flatMap({ UInt32(exactly: $0) }),
            let minor = device[1].number(radix: 16).flatMap({ UInt32(exactly: $0) }), let inode = parts[4].number()
        else { return nil }
        let permissions = Array(parts[1])
        guard permissions.count == 4, Self.isOne(of: "r-", permissions[0]), Self.isOne(of: "w-", permissions[1]),
            Self.isOne(of: "x-", permissions[2]), Self.isOne(of: "ps", permissions[3])
        else { return nil }
        self.addresses = addresses
        isReadable = permissions[0] == UInt8(ascii: "r")
        isWritable = permissions[1] == UInt8(ascii: "w")
        isExecutable = permissions[2] == UInt8(ascii: "x")
        isShared = permissions[3] == UInt8(ascii: "s")
        fileOffset = ByteCount(offset)
        file = inode == 0 ? nil : FileIdentity(major: major, minor: minor, inode: inode)
        path = parts.count == 6 ? parts[5].drop { $0 == blank }.text : ""
    }

    private static func isOne(of letters: StaticString, _ byte: UInt8) -> Bool { "\(letters)".utf8.contains(byte) }

    /// `start-end` in hexadecimal.
    static func addresses(_ text: ArraySlice<UInt8>) -> Range<TargetAddress>? {
        let ends = text.split(separator: UInt8(ascii: "-"), omittingEmptySubsequences: false)
        guard ends.count == 2, let start = ends[0].number(radix: 16), let end = ends[1].number(radix: 16), start < end else {
            return nil
        }
        return TargetAddress(start)..<TargetAddress(end)
    }

    /// Parses a whole listing. Throws `.protocolViolation` for a line of another form or out of order.
    static func parse(_ lines: [ArraySlice<UInt8>], place: String) throws(EngineError) -> [MemoryMapping] {
        var result: [MemoryMapping] = []
        result.reserveCapacity(lines.count)
        for line in lines {
            guard let mapping = MemoryMapping(line: line), mapping.addresses.lowerBound >= result.last?.addresses.upperBound ?? TargetAddress(0 as UInt64)
            else { throw EngineError(.protocolViolation, "can't understand the mapping '\(line.text)'", place: place) }
            result.append(mapping)
        }
        return result
    }
}

extension [MemoryMapping] {
    /// The shared, writable mappings of files, those put together that show consecutive pieces of one file at consecutive addresses:
    /// the kernel splits a mapping when parts of it are treated differently.
    public var sharedRegions: [MemoryMapping] {
        var result: [MemoryMapping] = []
        for mapping in self where mapping.isShared && mapping.isWritable && mapping.file != nil {
            if let last = result.last, last.file == mapping.file, last.addresses.upperBound == mapping.addresses.lowerBound,
                last.fileOffset + last.length == mapping.fileOffset
            {
                result[result.count - 1].addresses = last.addresses.lowerBound..<mapping.addresses.upperBound
            } else {
                result.append(mapping)
            }
        }
        return result
    }
}
