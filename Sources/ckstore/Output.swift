// Writing results: text, tables and JSON on standard output, messages on standard error.
//
// Invariant: a write that fails is an error of the command; nothing is cut off in silence.

import CheckpointStore
import FoundationEssentials
import Glibc
import Units

/// Standard output.
enum StandardOutput {
    static func write(_ text: String) throws {
        var text = text
        try text.withUTF8 { bytes in unsafe try write(UnsafeRawBufferPointer(bytes)) }
    }

    /// A JSON value with sorted keys, indented for people who watch.
    static func write(json value: some Encodable) throws { try write(text(json: value, isPretty: isTerminal(1))) }

    /// A JSON value as it is printed, the line ended.
    static func text(json value: some Encodable, isPretty: Bool) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        if isPretty { encoder.outputFormatting.insert(.prettyPrinted) }
        return String(decoding: try encoder.encode(value), as: UTF8.self) + "\n"
    }

    static func write(_ bytes: UnsafeRawBufferPointer) throws {
        let status = unsafe writeAll(1, bytes)
        if status == EPIPE { throw BrokenPipe() }
        if status != 0 { throw systemError("write to", "standard output", status) }
    }
}

/// Writes to standard error. One that can't be written to is nobody's to tell.
func standardError(_ text: String) {
    var text = text
    _ = text.withUTF8 { bytes in unsafe writeAll(2, UnsafeRawBufferPointer(bytes)) }
}

func isTerminal(_ descriptor: Int32) -> Bool { isatty(descriptor) == 1 }

/// Writes all of `bytes` at the descriptor's position. Returns 0 or an errno value.
func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer) -> Int32 {
    var done = 0
    while done < bytes.count {
        let count = unsafe Glibc.write(descriptor, bytes.baseAddress! + done, bytes.count - done)
        if count < 0 {
            if errno == EINTR { continue }
            if errno == EAGAIN {
                // Somebody has made the other end non-blocking for all of us.
                var wait = pollfd(fd: descriptor, events: Int16(POLLOUT), revents: 0)
                _ = unsafe poll(&wait, 1, -1)
                continue
            }
            return errno
        }
        done += count
    }
    return 0
}

/// Writes all of `bytes` at `offset`. Returns 0 or an errno value.
func writeAll(_ descriptor: Int32, _ bytes: UnsafeRawBufferPointer, at offset: UInt64) -> Int32 {
    var done = 0
    while done < bytes.count {
        let count = unsafe pwrite(descriptor, bytes.baseAddress! + done, bytes.count - done, off_t(offset) + off_t(done))
        if count < 0 {
            if errno == EINTR { continue }
            return errno
        }
        // A device that takes nothing at its end.
        if count == 0 { return ENOSPC }
        done += count
    }
    return 0
}

/// Rows under headings, in columns as wide as they need to be.
struct Table {
    enum Alignment { case left, right }
    var columns: [(heading: String, alignment: Alignment)]
    var rows: [[String]] = []

    /// The text, each line ended.
    var text: String {
        let lines = [columns.map(\.heading)] + rows
        let widths = columns.indices.map { column in lines.map { $0[column].count }.max() ?? 0 }
        return lines.map { line in
            var text = ""
            for (column, cell) in line.enumerated() {
                let padding = String(repeating: " ", count: widths[column] - cell.count)
                let isLast = column == line.count - 1
                text += columns[column].alignment == .right ? padding + cell : cell + (isLast ? "" : padding)
                if !isLast { text += "  " }
            }
            while text.last == " " { text.removeLast() }
            return text + "\n"
        }.joined()
    }
}

/// Lines of "name: value" with the values under one another.
func listing(_ lines: [(name: String, value: String)]) -> String {
    let width = lines.map { $0.name.count }.max() ?? 0
    return lines.map { line in
        line.name + ":" + String(repeating: " ", count: width - line.name.count + 1) + line.value + "\n"
    }.joined()
}

/// "1 block", "2 blocks".
func counted(_ count: Int, _ noun: String) -> String { "\(count) \(noun)\(count == 1 ? "" : "s")" }

/// A size for people: "1.5 GiB".
func readable(_ bytes: ByteCount) -> String { readable(bytes: Double(bytes.rawValue)) }

func readable(bytes: Double) -> String {
    var (value, unit) = (bytes, 0)
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"]
    while value >= 1024, unit < units.count - 1 { (value, unit) = (value / 1024, unit + 1) }
    return unit == 0 ? "\(Int(value)) B" : "\(oneDecimal(value)) \(units[unit])"
}

/// "12.3".
func oneDecimal(_ value: Double) -> String {
    let tenths = Int((value * 10).rounded())
    return "\(tenths / 10).\(tenths % 10)"
}

/// Text from outside without what would move a terminal's cursor.
func printable(_ text: String) -> String {
    var result = ""
    for scalar in text.unicodeScalars {
        switch scalar.properties.generalCategory {
        case .control, .format, .lineSeparator, .paragraphSeparator: result += "\\u{\(String(scalar.value, radix: 16))}"
        default: result.unicodeScalars.append(scalar)
        }
    }
    return result
}

/// A time in UTC: "2030-01-31T12:00:00Z", with nine decimals where `isExact`.
func timestamp(nanoseconds: UInt64, isExact: Bool) -> String {
    var seconds = time_t(nanoseconds / 1_000_000_000)
    var parts = unsafe tm()
    guard unsafe gmtime_r(&seconds, &parts) != nil else { return "\(nanoseconds) ns" }
    func digits(_ value: some BinaryInteger, _ count: Int) -> String {
        let text = String(value)
        return String(repeating: "0", count: max(0, count - text.count)) + text
    }
    let day = "\(digits(unsafe Int(parts.tm_year) + 1900, 4))-\(digits(unsafe parts.tm_mon + 1, 2))-\(digits(unsafe parts.tm_mday, 2))"
    let time = "\(digits(unsafe parts.tm_hour, 2)):\(digits(unsafe parts.tm_min, 2)):\(digits(unsafe parts.tm_sec, 2))"
    return "\(day)T\(time)" + (isExact ? "." + digits(nanoseconds % 1_000_000_000, 9) : "") + "Z"
}
