// The report as one HTML page: a template, its style and script, and the data.
//
// Invariants:
// - The page loads nothing: its policy allows its own style and script only, by a number that nobody who wrote names into the store
//   can know.
// - Text from the store is data to the script, or escaped; it can end no element and no script.

import FoundationEssentials

/// Draws reports.
public enum ReportPage {
    /// The page, complete: UTF-8, no other file needed.
    /// - Throws: what encoding throws; values of a report can be encoded.
    public static func html(_ data: ReportData) throws -> String {
        let nonce = String(UInt64.random(in: .min ... .max), radix: 36) + String(UInt64.random(in: .min ... .max), radix: 36)
        let script = [
            PackageResources.core_js, PackageResources.lineage_js, PackageResources.maps_js, PackageResources.heat_js,
            PackageResources.cost_js, PackageResources.segments_js, PackageResources.main_js,
        ].map { String(decoding: $0, as: UTF8.self) }.joined(separator: "\n")
        let values = [
            "nonce": nonce, "title": escaped("\(data.store.medium): ckstore report"),
            "style": String(decoding: PackageResources.report_css, as: UTF8.self), "data": try embedded(data),
            "script": "(() => {\n\"use strict\";\n\(script)})();",
        ]
        return fill(String(decoding: PackageResources.page_html, as: UTF8.self), values)
    }

    /// The data as JSON, keys sorted.
    /// - Throws: what encoding throws.
    public static func json(_ data: ReportData) throws -> String {
        let encoder = JSONEncoder()
        encoder.outputFormatting = [.sortedKeys, .withoutEscapingSlashes]
        return String(decoding: try encoder.encode(data), as: UTF8.self)
    }

    /// JSON that can stand in an element: `<` occurs in its strings only, and may be written as an escape there.
    private static func embedded(_ data: ReportData) throws -> String {
        var bytes: [UInt8] = []
        let escape = Array("\\u003c".utf8)
        for byte in try json(data).utf8 {
            if byte == UInt8(ascii: "<") { bytes += escape } else { bytes.append(byte) }
        }
        return String(decoding: bytes, as: UTF8.self)
    }

    /// Puts values in place of `{{name}}` in the template, once: what a value contains is not looked at.
    private static func fill(_ template: String, _ values: [String: String]) -> String {
        var page = ""
        for (index, piece) in template.split(separator: "{{", omittingEmptySubsequences: false).enumerated() {
            guard index > 0, let end = piece.firstRange(of: "}}") else {
                page += piece
                continue
            }
            guard let value = values[String(piece[..<end.lowerBound])] else { preconditionFailure("the template asks for \(piece)") }
            page += value
            page += piece[end.upperBound...]
        }
        return page
    }

    private static func escaped(_ text: String) -> String {
        var result = ""
        for character in text.unicodeScalars {
            switch character {
            case "&": result += "&amp;"
            case "<": result += "&lt;"
            case ">": result += "&gt;"
            case "\"": result += "&quot;"
            case "'": result += "&#39;"
            default: result.unicodeScalars.append(character)
            }
        }
        return result
    }
}
