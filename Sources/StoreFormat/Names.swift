// The rules for names of checkpoints and regions, and the order that the format sorts them in.
//
// Invariant: names are compared byte by byte in UTF-8. Swift's `==` on strings treats canonically
// equivalent texts as equal, which the format does not: use `Names.equal` and `Names.precedes`.

/// Names of checkpoints and regions.
public enum Names {
    /// The longest name, in bytes of UTF-8.
    public static let maximumLength = 255

    /// Throws `.badField` unless `name` is one for a checkpoint or region: 1 to 255 bytes, no control
    /// characters, no `/`, not `.` or `..`.
    public static func check(_ name: String) throws(FormatError) {
        try check(name, subject: "name")
    }

    static func check(_ name: String, subject: String) throws(FormatError) {
        let length = name.utf8.count
        try StoreFormat.check(
            length >= 1 && length <= maximumLength, subject, "a name of \(length) bytes, 1 to \(maximumLength) allowed")
        // Looking a character up takes long; most names have none that needs it, and a catalog node has dozens of names.
        let isPlain = name.utf8.allSatisfy { $0 >= 0x20 && $0 < 0x7F }
        try StoreFormat.check(
            isPlain || !name.unicodeScalars.contains { $0.properties.generalCategory == .control }, subject,
            "a name with a control character")
        try StoreFormat.check(!name.utf8.contains(UInt8(ascii: "/")), subject, "a name with a slash")
        try StoreFormat.check(
            !equal(name, ".") && !equal(name, ".."), subject, "the name \(name), which means a directory elsewhere")
    }

    /// What the names of checkpoints that are being received begin with. Nobody gives such names to others, and lists leave them out.
    public static let partialPrefix = "ckstore.receiving."

    /// Whether `name` is that of a checkpoint that has been received in part.
    public static func isPartial(_ name: String) -> Bool { name.utf8.starts(with: partialPrefix.utf8) }

    /// Whether `a` comes before `b` in the order of the format: bytewise in UTF-8.
    public static func precedes(_ a: String, _ b: String) -> Bool { a.utf8.lexicographicallyPrecedes(b.utf8) }

    /// Whether `a` and `b` are the same name: the same bytes.
    public static func equal(_ a: String, _ b: String) -> Bool { a.utf8.elementsEqual(b.utf8) }
}
