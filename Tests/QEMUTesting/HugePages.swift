// Pages of 2 MiB for guests: the system has none unless somebody reserves them.

import Foundation

/// Pages of 2 MiB, reserved in the whole system as long as the object lives. Needs to be root.
public final class HugePages: Sendable {
    private static let control = "/proc/sys/vm/nr_hugepages"
    private let count: Int

    /// Reserves `mebibytes` in addition to what is reserved.
    public init(mebibytes: Int) throws {
        count = (mebibytes + 1) / 2
        let before = try Self.reserved()
        try Self.reserve(before + count)
        guard try Self.reserved() >= before + count else {
            try Self.reserve(before)
            throw GuestTrouble("the system has no \(count) huge pages to give")
        }
    }

    deinit { try? Self.reserve(max(0, Self.reserved() - count)) }

    private static func reserved() throws -> Int {
        let text = try String(contentsOfFile: control, encoding: .utf8)
        guard let number = Int(text.trimmingCharacters(in: .whitespacesAndNewlines)) else { throw GuestTrouble("\(control): \(text)") }
        return number
    }

    private static func reserve(_ number: Int) throws {
        // In place: the file can't be replaced.
        guard let file = FileHandle(forWritingAtPath: control) else { throw GuestTrouble("\(control) can't be written") }
        try file.write(contentsOf: Data("\(number)\n".utf8))
        try file.close()
    }
}
