// Copy-on-write files: what is read is what was written, after crashes what was flushed, and never anything wrong.

import CheckpointCore
import FaultHarness
import Foundation
import Testing
import Threading
import Units
import VirtualDisks

/// Reads a whole file over an image of zeros.
func content(of file: CowFile) throws -> [UInt8] {
    var result = [UInt8](repeating: 0, count: file.geometry.diskLength.int)
    for group in file.groups {
        let range = file.geometry.bytes(of: group)
        try unsafe result.withUnsafeMutableBytes { all in
            let part = unsafe UnsafeMutableRawBufferPointer(rebasing: all[range.lowerBound.int..<range.upperBound.int])
            try require(unsafe try file.read(at: range.lowerBound, into: part), "group \(group) is not there")
        }
    }
    return result
}

/// Writes bytes that may cross groups, over an image of zeros.
func write(_ bytes: [UInt8], at start: Int, to file: CowFile) throws {
    let range = DiskOffset(start)..<DiskOffset(start + bytes.count)
    for group in file.geometry.groups(of: range) {
        let whole = file.geometry.bytes(of: BlockGroup(group))
        let piece = whole.clamped(to: range)
        let zeros = [UInt8](repeating: 0, count: whole.byteCount.int)
        try unsafe bytes[(piece.lowerBound - range.lowerBound).int..<(piece.upperBound - range.lowerBound).int].withUnsafeBytes { part in
            try unsafe zeros.withUnsafeBytes { unsafe try file.write(at: piece.lowerBound, part, over: $0) }
        }
    }
}

@Suite struct CowFileTests {
    private static func geometry(_ sectors: Int, groupSize: ByteCount = .kibibytes(4)) throws -> DiskGeometry {
        try DiskGeometry(diskLength: ByteCount(sectors * sectorSize), groupSize: groupSize)
    }

    @Test(arguments: [4, 16, 64, 256] as [UInt64])
    func `what was written is read, before and after it was opened again`(_ groupKibibytes: UInt64) async throws {
        let seed = UInt64.random(in: 0...UInt64.max)
        print("seed \(seed)")
        try await onPlainThread {
            var generator = SeededGenerator(seed: seed)
            let geometry = try Self.geometry(5 * 1024 + 3, groupSize: .kibibytes(groupKibibytes))
            let storage = MemoryStorage()
            var file = try CowFile.create(on: storage, geometry: geometry)
            var model = [UInt8](repeating: 0, count: geometry.diskLength.int)
            for step in 0..<600 {
                let start = generator.below(model.count / sectorSize)
                let count = min(1 + generator.below(40), model.count / sectorSize - start)
                let bytes = (0..<count * sectorSize).map { UInt8(truncatingIfNeeded: step &+ $0 / 7) }
                try write(bytes, at: start * sectorSize, to: file)
                model.replaceSubrange(start * sectorSize..<start * sectorSize + bytes.count, with: bytes)
                if generator.chance(1, in: 10) { try file.flush() }
                if generator.chance(1, in: 50) {
                    try require(try content(of: file) == model, "step \(step): other bytes")
                    try file.flush()
                    file = try CowFile.open(on: storage)
                }
            }
            try require(try content(of: file) == model, "other bytes at the end")
        }
    }

    @Test func `after a power cut at any point a file holds what was flushed, or what was written since`() async throws {
        let report = try await onPlainThread {
            let history = Lock(SectorHistory(sectorCount: 43))
            let device = SimulatedDevice(size: .mebibytes(1))
            var plan = CrashExplorer.Plan()
            plan.randomImageCount = 6000
            plan.workerCount = 2
            return try CrashExplorer("cow-file", seed: 41, plan: plan).explore(device) { device in
                var generator = SeededGenerator(seed: 77)
                let file = try CowFile.create(on: FaultStorage(device), geometry: try Self.geometry(43))
                device.mark("created")
                for _ in 0..<30 {
                    let start = generator.below(43)
                    let sectors = start..<min(43, start + 1 + generator.below(10))
                    let bytes = history.withLock { $0.write(sectors, at: device.logCount) }
                    try write(bytes, at: sectors.lowerBound * sectorSize, to: file)
                    guard generator.chance(1, in: 3) else { continue }
                    let began = device.logCount
                    try file.flush()
                    device.mark("flushed")
                    history.withLock { $0.flush(began: began, acknowledged: device.logCount) }
                }
            } check: { image in
                guard !image.marks.isEmpty else { return }
                let file = try CowFile.open(on: FaultStorage(image.device))
                try history.withLock { try $0.check(try content(of: file), at: image.point) }
                // It goes on from there.
                var after = try content(of: file)
                try write(SectorHistory.sector(9999), at: 5 * sectorSize, to: file)
                try file.flush()
                after.replaceSubrange(5 * sectorSize..<6 * sectorSize, with: SectorHistory.sector(9999))
                try require(try content(of: try CowFile.open(on: FaultStorage(image.device))) == after, "what is written after a crash is lost")
            }
        }
        print(report)
        #expect(report.isReplay || report.imageCount > 3000)
    }

    @Test func `a flush that does not wait for its data is noticed by the crash tests`() async throws {
        await #expect(throws: CrashFailure.self) {
            try await onPlainThread {
                let device = SimulatedDevice(size: .mebibytes(1))
                device.faults.add(FaultRule(.flush, .every(period: 2, first: 3), .ignoreFlush))
                try CrashExplorer("cow-defect", seed: 42).explore(device) { device in
                    let file = try CowFile.create(on: FaultStorage(device), geometry: try Self.geometry(16))
                    for version in 1...3 as ClosedRange<UInt32> {
                        try write(SectorHistory.sector(version), at: 0, to: file)
                        try file.flush()
                        device.mark("flushed")
                    }
                } check: { image in
                    guard !image.marks.isEmpty else { return }
                    _ = try content(of: try CowFile.open(on: FaultStorage(image.device)))
                }
            }
        }
    }

    @Test func `a flipped bit anywhere is an error, or makes no difference`() async throws {
        let (errors, same) = try await onPlainThread {
            var generator = SeededGenerator(seed: 5)
            let storage = MemoryStorage()
            let file = try CowFile.create(on: storage, geometry: try Self.geometry(43))
            for version in 1...20 as ClosedRange<UInt32> {
                try write(SectorHistory.sector(version), at: generator.below(43) * sectorSize, to: file)
                if version % 4 == 0 { try file.flush() }
            }
            let (bytes, right) = (storage.bytes, try content(of: file))
            var counts = (errors: 0, same: 0)
            for place in bytes.indices {
                var damaged = bytes
                damaged[place] ^= 1 << UInt8(generator.below(8))
                do {
                    try require(try content(of: try CowFile.open(on: MemoryStorage(damaged))) == right, "wrong bytes after damage at \(place)")
                    counts.same += 1
                } catch let error as EngineError {
                    try require(error.code == .corrupt && !error.remedy.isEmpty, "\(error)")
                    counts.errors += 1
                }
            }
            return counts
        }
        print("\(errors) errors, \(same) without consequence")
        #expect(errors > 15_000 && same > 0)
    }

    @Test func `a truncated file is an error wherever it ends`() throws {
        let storage = MemoryStorage()
        let file = try CowFile.create(on: storage, geometry: try Self.geometry(43))
        for sector in 0..<43 { try write(SectorHistory.sector(UInt32(sector + 1)), at: sector * sectorSize, to: file) }
        try file.flush()
        let bytes = storage.bytes
        for end in stride(from: 0, to: bytes.count, by: 512) {
            let error = try engineError { _ = try content(of: try CowFile.open(on: MemoryStorage(Array(bytes[..<end])))) }
            #expect(error.code == .corrupt)
        }
    }

    @Test func `an unknown version is named`() throws {
        let storage = MemoryStorage()
        _ = try CowFile.create(on: storage, geometry: try Self.geometry(8))
        var bytes = storage.bytes
        for header in [1, 3] {
            bytes[header * 4096 + 24] = 9
            // The checksum as the format says it is.
            bytes.replaceSubrange(header * 4096 + 8..<header * 4096 + 24, with: checksum(Array(bytes[header * 4096 + 24..<(header + 1) * 4096])))
        }
        let error = try engineError { _ = try CowFile.open(on: MemoryStorage(bytes)) }
        #expect(error.code == .unsupported && error.reason.contains("version 9"))
    }

    @Test func `a write that fails for lack of space changes nothing, and a failed flush is final`() throws {
        let storage = MemoryStorage()
        let file = try CowFile.create(on: storage, geometry: try Self.geometry(16))
        try write(SectorHistory.sector(1), at: 0, to: file)
        try file.flush()
        storage.setFault { operation, _ in operation == .write ? EngineError(.noSpace, "full") : nil }
        #expect(try engineError { try write(SectorHistory.sector(2), at: 0, to: file) }.code == .noSpace)
        #expect(try engineError { try write(SectorHistory.sector(2), at: 8 * sectorSize, to: file) }.code == .noSpace)
        #expect(try content(of: file).starts(with: SectorHistory.sector(1)) && file.groupCount == 1)
        storage.setFault(nil)
        try write(SectorHistory.sector(3), at: 0, to: file)
        storage.setFault { operation, _ in operation == .flush ? EngineError(.ioFailed, "lost") : nil }
        #expect(try engineError { try file.flush() }.reason == "lost")
        storage.setFault(nil)
        #expect(try engineError { try file.flush() }.reason == "lost")
        #expect(try engineError { try write(SectorHistory.sector(4), at: 0, to: file) }.reason == "lost")
        #expect(try content(of: file).starts(with: SectorHistory.sector(3)))
        #expect(try content(of: try CowFile.open(on: MemoryStorage(storage.bytes))).isEmpty == false)
    }

    @Test func `writers, readers and flushes side by side`() async throws {
        try await onPlainThread {
            let storage = MemoryStorage()
            let geometry = try Self.geometry(64 * 8)
            let file = try CowFile.create(on: storage, geometry: geometry)
            let failure = Lock<String?>(nil)
            PlainThreads.run(4) { number in
                do {
                    var generator = SeededGenerator(seed: UInt64(number))
                    var mine = [UInt32](repeating: 0, count: 128)
                    for step in 1...1500 as ClosedRange<UInt32> {
                        // Sectors of one group belong to several threads.
                        let index = generator.below(128)
                        mine[index] = step * 4 + UInt32(number)
                        try write(SectorHistory.sector(mine[index]), at: (index * 4 + number) * sectorSize, to: file)
                        if step % 100 == 0 { try file.flush() }
                        let other = generator.below(128)
                        var bytes = [UInt8](repeating: 0, count: sectorSize)
                        _ = try unsafe bytes.withUnsafeMutableBytes {
                            unsafe try file.read(at: DiskOffset((other * 4 + number) * sectorSize), into: $0)
                        }
                        try require(bytes == SectorHistory.sector(mine[other]), "thread \(number), step \(step): another version")
                    }
                } catch { failure.withLock { $0 = "\(error)" } }
            }
            if let text = failure.withLock({ $0 }) { throw TestFailure(text) }
            let right = try content(of: file)
            try file.flush()
            try require(try content(of: try CowFile.open(on: storage)) == right, "other bytes after opening")
        }
    }

    @Test func `a real file is made with mode 0600, belongs to one user at a time, and is not overwritten`() throws {
        let folder = try TemporaryFolder()
        let geometry = try Self.geometry(64)
        do {
            let file = try CowFile.create(folder.path("overlay"), geometry: geometry)
            try write(SectorHistory.sector(7), at: 0, to: file)
            try file.flush()
            #expect(try engineError { _ = try CowFile.create(folder.path("overlay"), geometry: geometry) }.code == .busy)
            #expect(try engineError { _ = try CowFile.open(folder.path("overlay")) }.code == .busy)
            let mode = try FileManager.default.attributesOfItem(atPath: folder.path("overlay"))[.posixPermissions] as? Int
            #expect(mode == 0o600)
        }
        #expect(try content(of: try CowFile.open(folder.path("overlay"))).starts(with: SectorHistory.sector(7)))
        #expect(try engineError { _ = try CowFile.open(folder.path("none")) }.code == .notFound)
        #expect(try engineError { _ = try CowFile.create(folder.path("none/overlay"), geometry: geometry) }.code == .notFound)
    }

    @Test func `disks and groups that can't be are refused`() throws {
        for (length, group) in [(0, 65536), (513, 65536), (512, 65535), (512, 2048), (512, 1 << 19), (1 << 56, 65536)] {
            #expect(try engineError { _ = try DiskGeometry(diskLength: ByteCount(length), groupSize: ByteCount(group)) }.code == .invalidInput)
        }
    }
}
