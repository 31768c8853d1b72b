// The forms that arguments have: sizes, R=FILE, KEY=VALUE.

import ArgumentParser
import CheckpointStore
import Units

/// A size in bytes, as people write it: 4096, 64K, 2M, 8G, 1T; 0x1000 for addresses.
struct Size {
    var bytes: ByteCount

    /// Throws `ValidationError` for anything that is no size.
    init(parsing text: String) throws {
        guard let bytes = Self.parse(text) else {
            throw ValidationError("'\(text)' is not a size. Write bytes (4096 or 0x1000) or a number with K, M, G or T (8G).")
        }
        self.bytes = ByteCount(bytes)
    }

    private static func parse(_ text: String) -> UInt64? {
        if text.lowercased().hasPrefix("0x") { return number(text.dropFirst(2), radix: 16) }
        let digits = text.prefix { $0.isASCII && $0.isNumber }
        guard let value = number(digits, radix: 10) else { return nil }
        let shifts: [String: UInt64] = ["": 0, "B": 0, "K": 10, "M": 20, "G": 30, "T": 40]
        var suffix = text.dropFirst(digits.count).uppercased()
        if suffix.hasSuffix("IB") { suffix.removeLast(2) }
        guard let shift = shifts[suffix] else { return nil }
        let (bytes, overflow) = value.multipliedReportingOverflow(by: 1 << shift)
        return overflow || bytes > UInt64(Int64.max) ? nil : bytes
    }

    /// Digits alone: no sign, no blanks.
    private static func number(_ text: Substring, radix: Int) -> UInt64? {
        text.allSatisfy({ $0.isHexDigit }) ? UInt64(text, radix: radix) : nil
    }
}

/// A region and the file that it is read from or written to, written R=FILE. `-` is standard input or output.
struct RegionFile {
    var region: String
    var path: String
    var isStandard: Bool { path == "-" }

    init(parsing text: String) throws {
        guard let equals = text.firstIndex(of: "=") else {
            throw ValidationError("'\(text)' has no '='. Write REGION=FILE, for example ram=guest.mem.")
        }
        region = String(text[..<equals])
        path = String(text[text.index(after: equals)...])
        guard !region.isEmpty else {
            throw ValidationError("'\(text)' names no region. Write REGION=FILE, for example ram=guest.mem.")
        }
        guard !path.isEmpty, !path.utf8.contains(0) else {
            throw ValidationError("'\(text)' names no file. Write REGION=FILE; '-' is the standard stream.")
        }
    }

    init(region: String, path: String) {
        self.region = region
        self.path = path
    }

    /// Throws when a region is named twice, or '-' is.
    static func checkUnique(_ files: [RegionFile]) throws {
        var seen = Set<String>()
        for file in files where !seen.insert(file.region).inserted {
            throw ValidationError("The region '\(file.region)' is given twice.")
        }
        if files.count(where: \.isStandard) > 1 {
            throw ValidationError("'-' can stand for one region only: the standard stream can't be shared.")
        }
    }
}

/// A label, written KEY=VALUE.
struct LabelArgument {
    var key: String
    var value: String

    init(parsing text: String) throws {
        guard let equals = text.firstIndex(of: "="), equals != text.startIndex else {
            throw ValidationError("'\(text)' is not a label. Write KEY=VALUE, for example reason=upgrade.")
        }
        key = String(text[..<equals])
        value = String(text[text.index(after: equals)...])
    }
}

/// A label to look for, written KEY or KEY=VALUE.
struct LabelFilter {
    var rule: RetentionPolicy.LabelRule

    init(parsing text: String) throws {
        let parts = text.split(separator: "=", maxSplits: 1, omittingEmptySubsequences: false)
        guard let key = parts.first, !key.isEmpty else {
            throw ValidationError("'\(text)' is not a label. Write KEY or KEY=VALUE, for example reason=upgrade.")
        }
        rule = RetentionPolicy.LabelRule(key: String(key), value: parts.count > 1 ? String(parts[1]) : nil)
    }

    func matches(_ info: CheckpointInfo) -> Bool { rule.matches(info.labels) }
}

/// A length of time, written 90s, 30m, 24h, 7d or 2w.
struct Age {
    var nanoseconds: UInt64

    init(parsing text: String) throws {
        let lengths: [Character: UInt64] = ["s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800]
        guard let unit = text.last, let length = lengths[unit], text.dropLast().allSatisfy({ $0.isASCII && $0.isNumber }),
            let count = UInt64(text.dropLast()), count > 0, count <= UInt64.max / length / 1_000_000_000
        else { throw ValidationError("'\(text)' is not a length of time. Write a number with s, m, h, d or w: 24h.") }
        nanoseconds = count * length * 1_000_000_000
    }
}
