// What goes wrong below a mapping is an error, and the process lives on.

import Foundation
import Media
import Testing
import Units

@Test func `a file truncated under its mapping is an error and no signal`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        defer { try? removeMedium(locator) }
        let medium = try createMedium(locator, size: .mebibytes(4))
        let other = try openMedium(locator, access: .readWrite)
        defer { [medium, other].forEach { $0.close() } }
        let bytes = pattern(1, count: 4 << 20)
        try medium.write(bytes, at: 0)
        try other.resize(to: .mebibytes(1))
        let error = expectFailure(.outOfRange) { _ = try medium.bytes(at: 2 << 20, count: 4096) }
        #expect(error?.offset == MediumOffset(2 << 20))
        #expect(error?.remedy.isEmpty == false)
        expectFailure(.outOfRange) { _ = try medium.bytes(at: 0, count: 4 << 20) }
        #expect(medium.size == .mebibytes(1))
        #expect(try medium.bytes(at: 0, count: 1 << 20) == Array(bytes[..<(1 << 20)]))
        expectFailure(.outOfRange) { try medium.write([1], at: 2 << 20) }
    }
}

@Test func `a file cut off inside a page invents no zeros`() throws {
    let directory = try ScratchDirectory()
    for locator in [try directory.locator(), try Locator(kind: .ram, target: "test-\(UUID())")] {
        defer { try? removeMedium(locator) }
        let medium = try createMedium(locator, size: ByteCount(16384))
        let other = try openMedium(locator, access: .readWrite)
        defer { [medium, other].forEach { $0.close() } }
        try medium.write(pattern(1, count: 16384), at: 0)
        try other.resize(to: ByteCount(10_000))
        // The page with byte 10,000 stays mapped: nothing faults there.
        expectFailure(.outOfRange) { _ = try medium.bytes(at: 8192, count: 4096) }
        #expect(try medium.bytes(at: 8192, count: 10_000 - 8192) == Array(pattern(1, count: 16384)[8192..<10_000]))
    }
}

@Test func `memory truncated under a write is an error and no signal`() throws {
    let locator = try Locator(kind: .ram, target: "test-\(UUID())")
    defer { try? removeMedium(locator) }
    let medium = try createMedium(locator, size: .mebibytes(2))
    let other = try openMedium(locator, access: .readWrite)
    defer { [medium, other].forEach { $0.close() } }
    try other.resize(to: .mebibytes(1))
    expectFailure(.outOfRange) { try medium.write(pattern(1, count: 1 << 20), at: 1 << 20) }
    try medium.write(pattern(1, count: 1 << 20), at: 0)
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a device that can't read its blocks is an error that names the place`() throws {
    let directory = try ScratchDirectory()
    let device = try LoopDevice(in: directory.path, megabytes: 8)
    let medium = try openMedium(device.locator(), access: .readWrite)
    defer { medium.close() }
    try medium.write(pattern(1, count: 1 << 20), at: 0)
    try medium.flush()
    // The device keeps its size and has nothing behind the second half any more.
    try run("truncate", "-s", "4M", device.backing)
    let error = expectFailure(.ioFailed) { _ = try medium.bytes(at: (6 << 20) + 100, count: 10_000) }
    #expect(error?.errno == EIO)
    #expect(error?.offset == MediumOffset((6 << 20) + 100))
    #expect(try medium.bytes(at: 0, count: 1 << 20) == pattern(1, count: 1 << 20))
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a file on a device that can't read its blocks is an error`() throws {
    let directory = try ScratchDirectory()
    let device = try LoopDevice(in: directory.path, megabytes: 64)
    try run("mkfs.ext4", "-q", "-E", "lazy_itable_init=0", device.path)
    let mount = try Mount(at: directory.file("mnt"), [device.path])
    let medium = try createMedium(mount.locator(), size: .mebibytes(40))
    for place in 0..<10 { try medium.write(pattern(UInt64(place), count: 4 << 20), at: place * (4 << 20)) }
    try medium.flush()
    medium.close()
    try run("truncate", "-s", "32M", device.backing)
    try Data("3\n".utf8).write(to: URL(fileURLWithPath: "/proc/sys/vm/drop_caches"))
    let reader = try openMedium(mount.locator(), access: .readOnly)
    defer { reader.close() }
    expectFailure(.ioFailed) {
        for place in 0..<10 {
            let bytes = try reader.bytes(at: place * (4 << 20), count: 4 << 20)
            #expect(bytes == pattern(UInt64(place), count: 4 << 20))
        }
    }
}

@Test(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
func `a flush that fails says that nothing may be assumed`() throws {
    let directory = try ScratchDirectory()
    let mount = try Mount(at: directory.file("small"), ["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
    // The device promises more than the file system below it has.
    let device = try LoopDevice(in: mount.path, megabytes: 16)
    let medium = try openMedium(device.locator(), access: .readWrite)
    defer { medium.close() }
    // Through the page cache: the write itself succeeds.
    try medium.write(pattern(1, count: (4 << 20) - 1), at: 1)
    let error = expectFailure(.flushFailed) { try medium.flush() }
    #expect(error?.remedy.isEmpty == false)
}

@Test func `a fault that is not the medium's still ends the process`() async {
    await #expect(processExitsWith: .signal(SIGSEGV)) {
        // Without a report on the crash, which takes seconds.
        signal(SIGSEGV, SIG_DFL)
        let medium = try RAMMedium.anonymous(size: .mebibytes(1))
        // A destination that can't be written is the caller's mistake.
        let nowhere = unsafe UnsafeMutableRawBufferPointer(start: UnsafeMutableRawPointer(bitPattern: 4096), count: 64)
        try unsafe medium.read(at: .zero, into: nowhere)
    }
    await #expect(processExitsWith: .signal(SIGBUS)) {
        _ = try RAMMedium.anonymous(size: .mebibytes(1))
        raise(SIGBUS)
    }
}

@Test func `a handler that was there before gets the faults that are not ours`() async {
    await #expect(processExitsWith: .exitCode(42)) {
        signal(SIGBUS) { _ in _exit(42) }
        let medium = try RAMMedium.anonymous(size: .mebibytes(1))
        // A handler that came later and was put behind ours again by the next medium.
        signal(SIGSEGV) { _ in _exit(43) }
        _ = try RAMMedium.anonymous(size: .mebibytes(1))
        _ = try medium.bytes(at: 0, count: 64)
        raise(SIGBUS)
    }
}

@Test func `a thread that blocks all signals gets an error too`() throws {
    let directory = try ScratchDirectory()
    let medium = try createMedium(directory.locator(), size: .mebibytes(2))
    let other = try openMedium(directory.locator(), access: .readWrite)
    defer { [medium, other].forEach { $0.close() } }
    try other.resize(to: .mebibytes(1))
    onThreads(1) { _ in
        var all = sigset_t()
        unsafe sigfillset(&all)
        unsafe pthread_sigmask(SIG_SETMASK, &all, nil)
        expectFailure(.outOfRange) { _ = try medium.bytes(at: (1 << 20) + 4096, count: 4096) }
    }
}
