// The reader in Python, written from `Formats/COW.md` alone, and the engine say the same of copy-on-write files.

import CheckpointCore
import FaultHarness
import Foundation
import PageCodec
import Testing
import Units
import VirtualDisks

private struct Python {
    var exitCode: Int32
    var output: String
    var errors: String

    /// Runs Formats/cow.py with the system's Python, for which Debian packages the hash function.
    init(_ arguments: String...) throws {
        let formats = URL(filePath: #filePath).deletingLastPathComponent().deletingLastPathComponent().deletingLastPathComponent()
            .appending(path: "Formats")
        let process = Process()
        process.executableURL = URL(filePath: "/usr/bin/python3")
        process.arguments = ["-B", formats.appending(path: "cow.py").path] + arguments
        let folder = try TemporaryFolder()
        let (out, err) = (folder.path("out"), folder.path("err"))
        for path in [out, err] { try Data().write(to: URL(filePath: path)) }
        process.standardOutput = try FileHandle(forWritingTo: URL(filePath: out))
        process.standardError = try FileHandle(forWritingTo: URL(filePath: err))
        try process.run()
        process.waitUntilExit()
        exitCode = process.terminationStatus
        output = try String(contentsOfFile: out, encoding: .utf8)
        errors = try String(contentsOfFile: err, encoding: .utf8)
    }
}

@Suite struct FormatTests {
    @Test(arguments: [4, 64, 256] as [UInt64])
    func `Python reads what the engine writes, and both refuse what is damaged`(_ groupKibibytes: UInt64) async throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        try await onPlainThread {
            var generator = SeededGenerator(seed: seed)
            let folder = try TemporaryFolder()
            let geometry = try DiskGeometry(diskLength: ByteCount(3001 * sectorSize), groupSize: .kibibytes(groupKibibytes))
            var disk = (0..<geometry.diskLength.int).map { UInt8(truncatingIfNeeded: $0 / 512 &* 3) }
            try Data(disk).write(to: URL(filePath: folder.path("image")))
            let lower = try CowFile.create(folder.path("lower"), geometry: geometry)
            let upper = try CowFile.create(folder.path("upper"), geometry: geometry, parent: lower.id)
            for (file, count) in [(lower, 60), (upper, 20)] {
                for version in 0..<count {
                    let offset = DiskOffset(generator.below(3001) * sectorSize)
                    let whole = geometry.bytes(of: geometry.group(of: offset))
                    let bytes = SectorHistory.sector(UInt32(version + 1000))
                    let base = Array(disk[whole.lowerBound.int..<whole.upperBound.int])
                    try unsafe bytes.withUnsafeBytes { part in
                        try unsafe base.withUnsafeBytes { unsafe try file.write(at: offset, part, over: $0) }
                    }
                    disk.replaceSubrange(offset.int..<offset.int + sectorSize, with: bytes)
                    if generator.chance(1, in: 8) { try file.flush() }
                }
                try file.flush()
            }
            let applied = try Python("apply", folder.path("image"), folder.path("out"), folder.path("lower"), folder.path("upper"))
            try require(applied.exitCode == 0, applied.errors)
            try require(try Data(contentsOf: URL(filePath: folder.path("out"))) == Data(disk), "Python sees another disk")
            try compareGroups(upper, folder.path("upper"))
            try compareDamage(folder, &generator)
        }
    }

    private func compareGroups(_ file: CowFile, _ path: String) throws {
        var lines = ""
        for group in file.groups {
            let range = file.geometry.bytes(of: group)
            var bytes = [UInt8](repeating: 0, count: range.byteCount.int)
            _ = try unsafe bytes.withUnsafeMutableBytes { unsafe try file.read(at: range.lowerBound, into: $0) }
            lines += "\(group) \(unsafe bytes.withUnsafeBytes { unsafe hash128($0) })\n"
        }
        let listed = try Python("list", path)
        try require(listed.exitCode == 0 && listed.output == lines, "other groups: \(listed.errors)")
        let info = try Python("info", path)
        try require(info.output.contains("\"state\": \"open\"") && info.output.contains("\"id\": \"\(file.id)\""), info.output + info.errors)
    }

    private func compareDamage(_ folder: TemporaryFolder, _ generator: inout SeededGenerator) throws {
        let sound = [UInt8](try Data(contentsOf: URL(filePath: folder.path("lower"))))
        for number in 0..<12 {
            var damaged = sound
            // In the first chunk's pages and slots most of the time.
            let place = 4096 + generator.below(min(sound.count, 150_000) - 4096)
            if number < 10 { damaged[place] ^= 1 } else { damaged.removeLast(sound.count - place) }
            try Data(damaged).write(to: URL(filePath: folder.path("damaged")))
            var isSound = true
            do { _ = try content(of: try CowFile.open(on: MemoryStorage(damaged))) } catch is EngineError { isSound = false }
            let listed = try Python("list", folder.path("damaged"))
            try require(listed.exitCode == (isSound ? 0 : 3), "damage at \(place): Python says \(listed.exitCode), \(listed.errors)")
        }
    }
}
