// The sample stores of Formats/golden and what is expected of their readers. See the README there.

import CheckpointStore
import Foundation
import Media
import Units

struct GoldenCase: Codable {
    struct Patch: Codable, Equatable {
        var offset: UInt64
        var hex: String
    }

    /// An outcome as a reader in Python reports it.
    struct Outcome: Codable {
        var exit: Int
        var error: String?
        var word: String?
    }

    struct List: Codable {
        var exit: Int
        var error: String?
        var word: String?
        var listing: Listing?
        var sameAs: String?
    }

    struct DamagedPlace: Codable, Hashable {
        var checkpoint: String?
        var region: String?
        var firstPage: UInt64?
        var pageCount: UInt64?
    }

    struct Verify: Codable {
        var exit: Int
        var error: String?
        var word: String?
        var damages: [DamagedPlace]?
        /// A verifier may leave out what finds it.
        var optional: Bool?
    }

    struct Contents: Codable, Equatable {
        var checkpoint: String
        var region: String
        var pagesSha256: String
    }

    struct Restore: Codable {
        var checkpoint: String
        var region: String
        var exit: Int
        var word: String?
    }

    struct Generation: Codable {
        var generation: UInt64
        var exit: Int
        var has: [String]?
        var hasNot: [String]?
    }

    struct Expectation: Codable {
        var open: Outcome
        var list: List?
        var verify: Verify?
        var contents: [Contents]?
        var restore: [Restore]?
        var generations: [Generation]?
        /// Whether a program of version 1 must not write to the store.
        var readOnly: Bool?
    }

    var about: String
    var base: String?
    var mediumBytes: UInt64
    var resealed: Bool?
    var patches: [Patch]
    var expect: Expectation

    enum CodingKeys: CodingKey { case about, base, mediumBytes, resealed, patches, expect }
}

extension GoldenCase {
    static let directory = Python.formats.appending(path: "golden")

    /// The names of all sample stores, ascending.
    static func names() throws -> [String] {
        try FileManager.default.contentsOfDirectory(atPath: directory.path).filter { $0.hasSuffix(".json") }
            .map { String($0.dropLast(5)) }.sorted()
    }

    static func load(_ name: String) throws -> GoldenCase {
        try JSONDecoder().decode(GoldenCase.self, from: Data(contentsOf: directory.appending(path: "\(name).json")))
    }

    /// Makes the store, as `golden/check.py --expand` does.
    func expand(to path: String) throws {
        let bytes = try base.map { try Data(contentsOf: Self.directory.appending(path: $0)) } ?? Data()
        try bytes.write(to: URL(filePath: path))
        try FileManager.default.setAttributes([.posixPermissions: 0o600], ofItemAtPath: path)
        let file = try FileHandle(forUpdating: URL(filePath: path))
        defer { try? file.close() }
        for patch in patches {
            try file.seek(toOffset: patch.offset)
            try file.write(contentsOf: Data(try bytesOfHex(patch.hex)))
        }
        try file.truncate(atOffset: mediumBytes)
    }

    /// The listing that is expected, taken from another case where that is named.
    func listing() throws -> Listing? {
        if let other = expect.list?.sameAs { return try Self.load(other).listing() }
        return expect.list?.listing
    }
}

func bytesOfHex(_ text: String) throws -> [UInt8] {
    let digits = Array(text.utf8)
    return try stride(from: 0, to: digits.count, by: 2).map { at in
        guard at + 1 < digits.count, let byte = UInt8(String(decoding: digits[at...at + 1], as: UTF8.self), radix: 16) else {
            throw Mismatch("not hexadecimal: \(text.prefix(40))")
        }
        return byte
    }
}
