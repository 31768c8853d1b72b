// The sample stores, good and bad, read by the Swift engine.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import Testing
import Units

@Suite struct GoldenTests {
    @Test func `the engine says of each sample store what is expected of a reader`() async throws {
        let failures = try await onPlainThread {
            let files = try TemporaryDirectory()
            return try GoldenCase.names().flatMap { name in
                var check = GoldenCheck(name: name, golden: try GoldenCase.load(name), path: files.path("store"))
                return try check.failures()
            }
        }
        #expect(failures.isEmpty, "\(failures.count) differences:\n\(failures.joined(separator: "\n"))")
    }

    @Test func `there are good and bad sample stores`() throws {
        let names = try GoldenCase.names()
        #expect(names.count { $0.hasPrefix("bad-") } >= 130)
        #expect(
            Set(names).isSuperset(of: [
                "chain", "deep", "draft-chain", "empty", "forwarding", "forwarding-shrunk", "full-nodes", "lineage", "poisoned",
                "ro-compat-unknown", "tiny",
            ]))
    }

    @Test func `the sample stores of version 1 are the very files of the release`() throws {
        let lines = try String(contentsOf: GoldenCase.directory.appending(path: "v1.sha256"), encoding: .utf8).split(separator: "\n")
        #expect(lines.count >= 150)
        for line in lines {
            let parts = line.split(separator: " ")
            var digest = SHA256()
            digest.update(try Data(contentsOf: GoldenCase.directory.appending(path: String(parts[1]))))
            #expect(digest.finish() == parts[0], "\(parts[1]) has been changed: new sample stores get new names")
        }
    }

    @Test func `stores that this version must not write to are opened for reading only, and stay as they are`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            let path = files.path("store")
            for name in try GoldenCase.names() {
                let golden = try GoldenCase.load(name)
                guard let isReadOnly = golden.expect.readOnly else { continue }
                try golden.expand(to: path)
                let before = try Data(contentsOf: URL(filePath: path))
                let store = try CheckpointStore.open(try openMedium(Locator(kind: .file, target: path), access: .readWrite))
                #expect(store.isReadOnly == isReadOnly, "\(name)")
                if isReadOnly {
                    let error = #expect(throws: StoreError.self, "\(name)") { _ = try store.begin("new") }
                    #expect(error?.code == .readOnly, "\(name): \(error.map { "\($0)" } ?? "")")
                }
                store.close()
                #expect(try Data(contentsOf: URL(filePath: path)) == before, "\(name) was written to")
            }
        }
    }
}

/// One sample store and what the engine makes of it.
struct GoldenCheck {
    let name: String
    let golden: GoldenCase
    let path: String
    private var found: [String] = []

    init(name: String, golden: GoldenCase, path: String) {
        self.name = name
        self.golden = golden
        self.path = path
    }

    private mutating func fail(_ text: String) { found.append("\(name): \(text)") }

    mutating func failures() throws -> [String] {
        try golden.expand(to: path)
        do {
            let store = try open(nil)
            defer { store.close() }
            if golden.expect.open.exit != 0 {
                fail("opens, but should be \(golden.expect.open.error ?? "an error")")
            } else {
                list(store)
                verify(store)
                read(store)
            }
        } catch let error as StoreError {
            if golden.expect.open.exit == 0 || !isKind(error, golden.expect.open) {
                fail("opening fails with \(error.code) (\(error)), expected \(golden.expect.open)")
            }
        }
        for row in golden.expect.generations ?? [] { older(row) }
        return found
    }

    private func open(_ generation: UInt64?) throws -> CheckpointStore {
        try CheckpointStore.open(
            try openMedium(Locator(kind: .file, target: path), access: .readOnly), generation: generation.map { Generation($0) })
    }

    /// Whether `error` is what a reader with these exit codes and words means.
    private func isKind(_ error: StoreError, _ outcome: GoldenCase.Outcome) -> Bool {
        switch (outcome.exit, outcome.error) {
        case (5, _): error.code == .notFound
        case (3, "not a store"): error.code == .notAStore
        case (3, "truncated"): error.code == .truncated
        case (3, "unsupported"): error.code == .unsupported
        case (3, "superblock lost"): error.code == .corrupt && error.reason.contains("superblock lost")
        case (3, _): error.code == .corrupt
        default: false
        }
    }

    private mutating func list(_ store: CheckpointStore) {
        guard let expected = golden.expect.list else { return }
        do {
            let listing = try Listing(store.snapshot())
            guard expected.exit == 0 else { return fail("is listed, but should fail (\(expected.word ?? ""))") }
            if let wanted = try golden.listing() { try requireEqual(listing, wanted, "list") }
        } catch let error as StoreError {
            if expected.exit != 3 || error.code != .corrupt { fail("listing fails: \(error)") }
        } catch { fail("\(error)") }
    }

    private mutating func verify(_ store: CheckpointStore) {
        guard let expected = golden.expect.verify else { return }
        do {
            let report = try store.verify(options: VerifyOptions(checksPages: true, parallelism: 2))
            if expected.optional == true, report.isSound { return }
            guard report.isSound == (expected.exit == 0) else {
                return fail("verify finds \(report.damages), expected exit code \(expected.exit) \(expected.word ?? "")")
            }
            if expected.error == "superblock lost", !report.damages.contains(where: { $0.reason.contains("superblock lost") }) {
                fail("verify does not find the superblock lost: \(report.damages)")
            }
            guard let damages = expected.damages else { return }
            // What is wrong with the store as a whole is beside these.
            let places = report.lostPlaces.filter { $0.checkpoint != nil }.map(place)
            if places.count != damages.count || Set(places) != Set(damages) {
                fail("verify finds \(report.damages) in \(places), expected \(damages)")
            }
        } catch { fail("verify fails: \(error)") }
    }

    /// The sample stores name no checkpoint where its record can't be read; the engine has its name from the catalog.
    private func place(_ damage: LostPlace) -> GoldenCase.DamagedPlace {
        let isRecord = damage.region == nil && damage.offset != nil
        return GoldenCase.DamagedPlace(
            checkpoint: isRecord ? nil : damage.checkpoint, region: damage.region, firstPage: damage.pages?.lowerBound.rawValue,
            pageCount: damage.pages.map { ($0.upperBound - $0.lowerBound).rawValue })
    }

    private mutating func read(_ store: CheckpointStore) {
        for row in golden.expect.contents ?? [] {
            do {
                let digest = try store.snapshot().reader(named: row.checkpoint).region(row.region).digest()
                if digest != row.pagesSha256 { fail("\(row.checkpoint)/\(row.region) has other content") }
            } catch { fail("\(row.checkpoint)/\(row.region) can't be read: \(error)") }
        }
        for row in golden.expect.restore ?? [] {
            do {
                let digest = try store.snapshot().reader(named: row.checkpoint).region(row.region).digest()
                if row.exit != 0 {
                    // The run's checksum vouches for the bytes: a reader need not look at page hashes.
                    if row.word != "hash" { fail("\(row.checkpoint)/\(row.region) can be read, expected exit code \(row.exit) (\(row.word ?? ""))") }
                } else if let wanted = try goodDigest(row), digest != wanted {
                    fail("\(row.checkpoint)/\(row.region) has other content than in the good store")
                }
            } catch let error as StoreError {
                let outcome = GoldenCase.Outcome(exit: row.exit)
                if !isKind(error, outcome) { fail("\(row.checkpoint)/\(row.region): \(error), expected exit code \(row.exit)") }
            } catch { fail("\(error)") }
        }
    }

    /// What the region holds in the store that this one is a damaged copy of.
    private func goodDigest(_ row: GoldenCase.Restore) throws -> String? {
        guard let base = golden.base?.split(separator: ".").first else { return nil }
        return try GoldenCase.load(String(base)).expect.contents?.first {
            $0.checkpoint == row.checkpoint && $0.region == row.region
        }?.pagesSha256
    }

    private mutating func older(_ row: GoldenCase.Generation) {
        do {
            let store = try open(row.generation)
            defer { store.close() }
            guard row.exit != 5 else { return fail("generation \(row.generation) opens, but is not there") }
            let snapshot = try store.snapshot()
            // A name may be there while its checkpoint is not any more.
            let canRead = { (name: String) in (try? snapshot.checkpoint(named: name)) != nil }
            for wanted in row.has ?? [] where !canRead(wanted) { fail("generation \(row.generation) lacks \(wanted)") }
            for other in row.hasNot ?? [] where canRead(other) { fail("generation \(row.generation) has \(other)") }
            let listed = Result { try store.snapshot().checkpoints() }
            switch listed {
            case .success: if row.exit != 0 { fail("generation \(row.generation) is listed whole, expected exit code \(row.exit)") }
            case .failure(let error): if row.exit == 0 { fail("generation \(row.generation): \(error)") }
            }
        } catch let error as StoreError {
            if !isKind(error, GoldenCase.Outcome(exit: row.exit)) { fail("generation \(row.generation): \(error)") }
        } catch { fail("\(error)") }
    }
}
