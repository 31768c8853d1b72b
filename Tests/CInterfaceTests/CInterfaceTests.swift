// The C library as C programs get it: installed, found by pkg-config, compiled against and run.
//
// Invariant: nothing of Swift is in the programs; they stand for any user of libckstore.so.

import Foundation
import Testing

@Suite(.serialized) struct CInterfaceTests {
    @Test func `a C program finds, links and uses the installed library, and every function does what the header says`() async throws {
        let place = try Workplace()
        defer { place.remove() }
        try await place.install()
        let flags = try await place.output("pkg-config", ["--cflags", "--libs", "ckstore"]).split(whereSeparator: \.isWhitespace).map(String.init)
        try await place.run(
            "cc",
            ["-std=c11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-pthread", place.sources + "/program.c", "-o", place.path("program")]
                + flags + ["-Wl,-rpath," + place.path("prefix/lib")])
        try FileManager.default.createDirectory(atPath: place.path("stores"), withIntermediateDirectories: false)
        try await place.run(place.path("program"), [place.path("stores")])
    }

    @Test func `the header is good C++ and old C too`() async throws {
        let place = try Workplace()
        defer { place.remove() }
        let header = place.sources + "/../../Sources/CKStoreHeader/ckstore.h"
        try await place.run("cc", ["-std=c99", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c", header])
        try await place.run("c++", ["-std=c++11", "-pedantic", "-Wall", "-Wextra", "-Werror", "-fsyntax-only", "-x", "c++", header])
    }

    @Test func `the library shows C just the functions of the header, and needs no Swift beside it`() async throws {
        let place = try Workplace()
        defer { place.remove() }
        let header = try String(contentsOfFile: place.sources + "/../../Sources/CKStoreHeader/ckstore.h", encoding: .utf8)
        let declared = Set(header.matches(of: /^[a-z][^\n]*?\b(ckstore_[a-z_]+)\(/.anchorsMatchLineEndings()).map { String($0.1) })
            .union(header.matches(of: /^int (ckstore_[a-z_]+)\($/.anchorsMatchLineEndings()).map { String($0.1) })
        let symbols = try await place.output("nm", ["--dynamic", "--defined-only", "--extern-only", place.library])
        let shown = symbols.split(separator: "\n").compactMap { $0.split(separator: " ").last?.split(separator: "@").first }
            .map(String.init).filter { $0 != "CKSTORE_1" }
        #expect(!declared.isEmpty)
        #expect(Set(shown) == declared)
        let needs = try await place.output("readelf", ["--dynamic", place.library])
        #expect(needs.contains("soname: [libckstore.so.1]"))
        #expect(!needs.lowercased().contains("swift"))
    }
}
