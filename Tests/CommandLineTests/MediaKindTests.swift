// The same commands on other media: shared memory, and block devices where there are any.

import Foundation
import Testing

@Test func `a store in shared memory works like any other`() throws {
    let box = try Sandbox()
    let store = "ram:ckstore-test-\(UUID())"
    defer { unsafe shm_unlink("/ckstore." + store.dropFirst(4)) }
    try box.expect(0, "create", store, "--size", "32M")
    let content = noise(1, count: 100_000)
    try box.expect(0, "save", store, "one", "--disk", "d=\(box.write("d", content))")
    #expect(try box.expect(0, "restore", store, "one", "--region", "d=-").output == content)
    #expect(try box.expect(0, "info", store, "--json").object()["kind"] as? String == "ram")
    try box.expect(1, "create", store, "--size", "32M")
}

/// A loop device over a sparse file, detached with the object.
private final class LoopDevice {
    let path: String
    private let box: Sandbox
    static let isAvailable =
        getuid() == 0 && FileManager.default.fileExists(atPath: "/dev/loop-control")
        && FileManager.default.isExecutableFile(atPath: "/usr/sbin/losetup")

    init(_ box: Sandbox, _ name: String, megabytes: UInt64) throws {
        self.box = box
        let backing = try box.writeSparse(name, length: megabytes << 20, [])
        let made = try box.start(program: "/usr/sbin/losetup", ["--find", "--show", backing]).wait()
        try #require(made.exitCode == 0, "\(made.errors)")
        path = made.text.trimmingCharacters(in: .newlines)
    }

    deinit { _ = try? box.start(program: "/usr/sbin/losetup", ["--detach", path]).wait() }
}

@Test(.enabled(if: LoopDevice.isAvailable, "needs root and loop devices"))
func `block devices are stores, inputs and, by force, outputs`() throws {
    let box = try Sandbox()
    let (store, disk) = (try LoopDevice(box, "store.img", megabytes: 64), try LoopDevice(box, "disk.img", megabytes: 8))
    try box.expect(0, "create", "raw:\(store.path)")
    try box.expect(1, "create", "raw:\(store.path)")
    let content = noise(1, count: 3 << 20) + zeros(1 << 20) + noise(2, count: 4 << 20)
    let handle = try box.open(disk.path, O_WRONLY)
    try handle.write(contentsOf: Data(content))
    try handle.close()
    let saved = try box.expect(0, "save", "raw:\(store.path)", "one", "--disk", "vda=\(disk.path)", "--json").object()
    #expect(saved["logicalBytes"] as? Int == 8 << 20)
    #expect(saved["zeroPages"] as? Int == 256)

    // Pages that are zero are zero on a device that had something else there.
    let other = try LoopDevice(box, "other.img", megabytes: 9)
    let before = try box.open(other.path, O_WRONLY)
    try before.write(contentsOf: Data(noise(3, count: 9 << 20)))
    try before.close()
    let target = "vda=\(other.path)"
    try box.expect(1, "restore", "raw:\(store.path)", "one", "--region", target)
    try box.expect(2, "restore", "raw:\(store.path)", "one", "--region", "vda=\(store.path)", "--force")
    try box.expect(0, "restore", "raw:\(store.path)", "one", "--region", target, "--force")
    let bytes = try box.open(other.path, O_RDONLY).readToEnd().map([UInt8].init)
    #expect(bytes == content + noise(3, count: 9 << 20)[(8 << 20)...])

    let small = try LoopDevice(box, "small.img", megabytes: 7)
    let refused = try box.expect(4, "restore", "raw:\(store.path)", "one", "--region", "vda=\(small.path)", "--force")
    #expect(refused.errors.contains("larger device"))
}
