import Foundation
import Media
import Testing
import Units

@Suite(.enabled(if: LoopDevice.isAvailable, LoopDevice.need))
struct RawMediumTests {
    @Test func `a blank device is taken over with the size it has`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        let medium = try createMedium(device.locator())
        defer { medium.close() }
        #expect(medium.size == .mebibytes(8))
        #expect(medium.traits.kind == .raw)
        #expect(medium.traits.writeMethod == "direct")
        try medium.write(pattern(1, count: 2 << 20), at: 1 << 20)
        try medium.flush()
        #expect(try medium.bytes(at: 1 << 20, count: 2 << 20) == pattern(1, count: 2 << 20))
        try medium.discard(at: MediumOffset(1 << 20), ByteCount(1 << 20))
        let kept = pattern(1, count: 2 << 20)[(1 << 20)...].prefix(4096)
        #expect(try medium.bytes(at: 2 << 20, count: 4096) == Array(kept))
        expectFailure(.unsupported) { try medium.resize(to: .mebibytes(4)) }
        expectFailure(.unsupported) { try removeMedium(device.locator()) }
    }

    @Test func `a size that the device does not have is refused`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        expectFailure(.noSpace) { _ = try createMedium(device.locator(), size: .mebibytes(9)) }
        expectFailure(.unsupported) { _ = try createMedium(device.locator(), size: .mebibytes(7)) }
        try createMedium(device.locator(), size: .mebibytes(8)).close()
    }

    @Test func `a file system is found, named, and lost only by force`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        try run("mkfs.ext4", "-q", "-L", "precious", device.path)
        let error = expectFailure(.foreignContent) { _ = try createMedium(device.locator()) }
        #expect(error?.reason.contains("ext4") == true)
        #expect(error?.reason.contains("precious") == true)
        try run("e2fsck", "-fn", device.path)
        try createMedium(device.locator(), force: true).close()
        // Nothing takes it for a file system any more.
        try createMedium(device.locator()).close()
    }

    @Test func `a partition table is found and named`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        let medium = try openMedium(device.locator(), access: .readWrite)
        // A master boot record with one partition of Linux, from sector 2048 on.
        var sector = [UInt8](repeating: 0, count: 512)
        sector.replaceSubrange(446..<462, with: [0, 0, 2, 0, 0x83, 0, 0, 0, 0, 8, 0, 0, 0, 8, 0, 0])
        sector[510] = 0x55
        sector[511] = 0xAA
        try medium.write(sector, at: 0)
        try medium.flush()
        medium.close()
        let error = expectFailure(.foreignContent) { _ = try createMedium(device.locator()) }
        #expect(error?.reason.contains("partition table (dos)") == true)
        try createMedium(device.locator(), force: true).close()
        try createMedium(device.locator()).close()
    }

    @Test func `a mounted device is busy, by force too`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        try run("mkfs.ext4", "-q", device.path)
        let mount = try Mount(at: directory.file("mnt"), [device.path])
        let error = expectFailure(.busy) { _ = try createMedium(device.locator(), force: true) }
        #expect(error?.reason.contains(mount.path) == true)
    }

    @Test func `a device in use by a store is busy, by force too`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        let user = try createMedium(device.locator())
        defer { user.close() }
        #expect(try user.locks.tryLock(LockRange(start: 3), .exclusive))
        expectFailure(.busy) { _ = try createMedium(device.locator(), force: true) }
    }

    @Test func `locks exclude each other whatever node the device was opened by`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        let number = device.path.drop { !$0.isNumber }
        try run("mknod", directory.file("alias"), "b", "7", String(number))
        let one = try openMedium(device.locator(), access: .readWrite)
        let two = try openMedium(Locator("raw:\(directory.file("alias"))"), access: .readWrite)
        defer { [one, two].forEach { $0.close() } }
        #expect(try one.locks.tryLock(LockRange(start: 0), .exclusive))
        #expect(try !two.locks.tryLock(LockRange(start: 0), .exclusive))
        #expect(lastingHolders(of: LockRange(start: 0), seenBy: two) == [getpid()])
    }

    @Test func `a block device is no file and says so`() throws {
        let directory = try ScratchDirectory()
        let device = try LoopDevice(in: directory.path, megabytes: 8)
        let error = expectFailure(.invalidLocator) { _ = try openMedium(Locator(device.path), access: .readOnly) }
        #expect(error?.remedy.contains("raw:") == true)
        expectFailure(.invalidLocator) { _ = try createMedium(Locator(device.path), size: .mebibytes(1), force: true) }
    }
}
