// A full medium is an error, in a write as in a reservation, and what was reserved can be written.

import Foundation
import Media
import Testing
import Units

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a full file system is an error and what was reserved can still be written`() throws {
    let directory = try ScratchDirectory()
    let device = try LoopDevice(in: directory.path, megabytes: 32)
    try run("mkfs.ext4", "-q", device.path)
    let mount = try Mount(at: directory.file("mnt"), [device.path])
    let medium = try createMedium(mount.locator(), size: .mebibytes(256))
    defer { medium.close() }
    #expect(medium.traits.reservesSpace)
    try medium.reserve(at: .zero, .mebibytes(4))
    let error = expectFailure(.noSpace) { try medium.reserve(at: MediumOffset(8 << 20), .mebibytes(200)) }
    #expect(error?.errno == ENOSPC)
    expectFailure(.noSpace) {
        for place in 2..<64 { try medium.write(pattern(1, count: 4 << 20), at: place * (4 << 20)) }
        try medium.flush()
    }
    let bytes = pattern(2, count: 4 << 20)
    try medium.write(bytes, at: 0)
    try medium.write(pattern(3, count: 999), at: 12345)
    try medium.flush()
    #expect(try medium.bytes(at: 12345, count: 999) == pattern(3, count: 999))
    #expect(try medium.bytes(at: 1 << 20, count: 1 << 20) == Array(bytes[(1 << 20)..<(2 << 20)]))
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a file on a full memory file system is an error`() throws {
    let directory = try ScratchDirectory()
    let mount = try Mount(at: directory.file("small"), ["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
    let medium = try createMedium(mount.locator(), size: .mebibytes(16))
    defer { medium.close() }
    expectFailure(.noSpace) { try medium.reserve(at: .zero, .mebibytes(8)) }
    expectFailure(.noSpace) { try medium.write(pattern(1, count: 8 << 20), at: 0) }
    // Holes read as zeros and need no space.
    #expect(try medium.bytes(at: 15 << 20, count: 4096) == zeros(4096))
    try medium.discard(at: .zero, .mebibytes(16))
    try medium.write(pattern(2, count: 1 << 19), at: 1 << 20)
    #expect(try medium.bytes(at: 1 << 20, count: 1 << 19) == pattern(2, count: 1 << 19))
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `stores through a mapping into a full file system are an error and no signal`() async throws {
    let directory = try ScratchDirectory()
    let mount = try Mount(at: directory.file("small"), ["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
    let path = "\(mount.path)/store.ck"
    await #expect(processExitsWith: .success) { [path = path as String] in
        unsafe setenv("PMEM_IS_PMEM_FORCE", "1", 1)
        let medium = try createMedium(Locator(kind: .flash, target: path), size: .mebibytes(16))
        try #require(medium.traits.isPersistentMemory)
        expectFailure(.noSpace) { try medium.reserve(at: .zero, .mebibytes(8)) }
        expectFailure(.noSpace) { try medium.write(pattern(1, count: 8 << 20), at: 0) }
        try medium.discard(at: .zero, .mebibytes(16))
        try medium.reserve(at: .zero, ByteCount(1 << 19))
        try medium.write(pattern(2, count: 1 << 19), at: 0)
        expectFailure(.noSpace) { try medium.write(pattern(1, count: 8 << 20), at: 1 << 20) }
        try #require(try medium.bytes(at: 0, count: 1 << 19) == pattern(2, count: 1 << 19))
        medium.close()
    }
}

@Test func `more memory than the system has is an error`() throws {
    let locator = try Locator(kind: .ram, target: "test-\(UUID())")
    defer { try? removeMedium(locator) }
    // Larger than any shared memory of today, and as large as addresses allow.
    let medium = try createMedium(locator, size: ByteCount(1 << 45))
    defer { medium.close() }
    expectFailure(.noSpace) { try medium.reserve(at: .zero, medium.size) }
    try medium.write(pattern(1, count: 4096), at: (1 << 45) - 4096)
    #expect(try medium.bytes(at: (1 << 45) - 4096, count: 4096) == pattern(1, count: 4096))
}
