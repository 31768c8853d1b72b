// Memory that programs open for writing so that they can map it privately: what they write is theirs, and nothing can be changed.

import CheckpointStore
import FaultHarness
import Foundation
import QEMUTesting
import QMP
import StoreTesting
import Testing
import Units

/// Tries everything that changes a file system on the region argv[1], with the system's calls, as user argv[2]; prints a line for each try:
/// its name, and `ok` or the error.
private let attempts = """
    import ctypes, errno, fcntl, mmap, os, sys
    ram, user = sys.argv[1], int(sys.argv[2])
    folder = os.path.dirname(ram)
    libc = ctypes.CDLL(None, use_errno=True)
    # As another user, but with the right to its own memory (PR_SET_DUMPABLE).
    if user: os.setgroups([]); os.setgid(user); os.setuid(user); libc.prctl(4, 1)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
    libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

    def attempt(name, body):
        try:
            body()
            print(name, 'ok')
        except OSError as error:
            print(name, errno.errorcode[error.errno])

    def check(result):
        if result in (-1, ctypes.c_void_p(-1).value): raise OSError(ctypes.get_errno(), '')
        return result

    def fallocate(mode): check(libc.fallocate(both, mode, ctypes.c_long(0), ctypes.c_long(8192)))
    def mapped(descriptor, flags, protection): return check(libc.mmap(None, 8192, protection, flags, descriptor, 0))

    def poke(memory):
        # As debuggers write to another program's memory, whatever its protection.
        with open('/proc/self/mem', 'r+b', buffering=0) as file:
            file.seek(memory)
            file.write(b'changed')

    for flags in ['WRONLY', 'RDWR|TRUNC', 'RDONLY|TRUNC', 'RDWR|APPEND']:
        attempt('open ' + flags, lambda: os.open(ram, sum(getattr(os, 'O_' + flag) for flag in flags.split('|'))))
    attempt('open 3', lambda: os.open(ram, 3))
    attempt('open disk', lambda: os.open(folder + '/vda', os.O_RDWR))
    attempt('open state', lambda: os.open(folder + '/cpu', os.O_RDWR))
    attempt('open description', lambda: os.open(folder + '/checkpoint.json', os.O_RDWR))
    attempt('create', lambda: os.open(folder + '/new', os.O_RDWR | os.O_CREAT))
    attempt('nameless', lambda: os.open(folder, os.O_RDWR | os.O_TMPFILE))
    attempt('mknod', lambda: os.mknod(folder + '/new'))
    attempt('mkdir', lambda: os.mkdir(folder + '/new'))
    attempt('rmdir', lambda: os.rmdir(folder))
    attempt('unlink', lambda: os.unlink(ram))
    attempt('rename', lambda: os.rename(ram, folder + '/new'))
    attempt('replace', lambda: os.rename(ram, folder + '/vda'))
    attempt('link', lambda: os.link(ram, folder + '/new'))
    attempt('symlink', lambda: os.symlink('ram', folder + '/new'))
    attempt('chmod', lambda: os.chmod(ram, 0o666))
    attempt('chown', lambda: os.chown(ram, user, user))
    attempt('utimes', lambda: os.utime(ram))
    attempt('truncate', lambda: os.truncate(ram, 5))
    attempt('setxattr', lambda: os.setxattr(ram, 'user.x', b'y'))
    attempt('removexattr', lambda: os.removexattr(ram, 'user.x'))
    print('access', os.access(ram, os.R_OK), os.access(ram, os.W_OK), os.access(ram, os.X_OK), os.access(folder, os.W_OK))

    both, reading = os.open(ram, os.O_RDWR), os.open(ram, os.O_RDONLY)
    attempt('write', lambda: os.write(both, b'changed'))
    attempt('pwrite', lambda: os.pwrite(both, bytes(4096), 4096))
    attempt('pwritev', lambda: os.pwritev(both, [bytes(10)], 0, os.RWF_DSYNC))
    attempt('sendfile', lambda: os.sendfile(both, os.open('/proc/self/exe', os.O_RDONLY), 0, 4096))
    attempt('copy', lambda: os.copy_file_range(reading, both, 4096, 0, 8192))
    attempt('ftruncate', lambda: os.ftruncate(both, 5))
    attempt('grow', lambda: os.ftruncate(both, 1 << 32))
    attempt('fchmod', lambda: os.fchmod(both, 0o666))
    for mode in [0, 1, 3, 16]: attempt(f'fallocate {mode}', lambda: fallocate(mode))
    fcntl.fcntl(both, fcntl.F_SETFL, os.O_APPEND | os.O_DIRECT)
    attempt('write, appending', lambda: os.write(both, b'changed'))
    for flags, kind in [(1, 'shared'), (3, 'validated')]:
        for protection in [1, 2, 3]: attempt(f'map {kind} {protection}', lambda: mapped(both, flags, protection))
        attempt(f'map {kind} reading', lambda: mapped(reading, flags, 1))
        attempt(f'map {kind} reading 3', lambda: mapped(reading, flags, 3))
        attempt(f'protect {kind}', lambda: check(libc.mprotect(mapped(reading, flags, 1), 8192, 3)))
        attempt(f'poke {kind}', lambda: poke(mapped(reading, flags, 1)))
    again = os.open(f'/proc/self/fd/{reading}', os.O_RDWR)
    attempt('map reopened', lambda: mapped(again, 1, 3))
    attempt('write reopened', lambda: os.write(again, b'changed'))
    for name, descriptor in [('both', both), ('reading', reading)]:
        memory = mmap.mmap(descriptor, 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
        memory[:7] = b'private'
        poke(ctypes.addressof(ctypes.c_char.from_buffer(memory, 4096)))
        print('private', name, memory[:7] == b'private' and memory[4096:4103] == b'changed')
    """

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct PrivateWriteTests {
    /// A checkpoint `one` with memory, a disk and a state.
    private func save(_ scene: MountScene, _ bytes: [UInt8]) throws {
        let writer = try scene.store.begin("one")
        try writer.addRegion("cpu", kind: .state, byteLength: ByteCount(4096)).write([UInt8](repeating: 1, count: 4096))
        try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(bytes.count)).write(bytes)
        try writer.addRegion("vda", kind: .disk, byteLength: ByteCount(4096)).write([UInt8](repeating: 2, count: 4096))
        try writer.commit()
    }

    private func requireUnchanged(_ scene: MountScene, _ bytes: [UInt8]) throws {
        for flags in [O_RDONLY, O_RDWR] {
            #expect(try OpenedFile(scene.path("one", "ram"), flags).read(at: 0, bytes.count + 1) == bytes)
        }
        #expect(try scene.run("verify", scene.storePath, "--deep").exitCode == 0)
        #expect(scene.log == [])
    }

    @Test func `with --private-writes memory can be opened for writing and mapped privately, and nothing can be changed`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            let bytes = content(4 << 20, seed: 31)
            try save(scene, bytes)
            // Other users are kept out by the mount, not by the folder that it is in.
            #expect(unsafe chmod(scene.folder.path, 0o711) == 0)
            // What stands beside the refusals of a read-only file system is what the kernel says by itself.
            let others = [
                "nameless EOPNOTSUPP", "map shared 1 ENODEV", "map shared 2 ENODEV", "map shared 3 ENODEV", "map shared reading ok",
                "map shared reading 3 EACCES", "protect shared EACCES", "poke shared EIO", "map validated 1 ENODEV", "map validated 2 ENODEV",
                "map validated 3 ENODEV", "map validated reading ok", "map validated reading 3 EACCES", "protect validated EACCES",
                "poke validated EIO", "map reopened ENODEV", "access True False False False", "private both True", "private reading True",
            ]
            try scene.mounted("--private-writes", "--allow-other") { _ throws in
                for user in ["0", "65534"] {
                    let outcome = try scene.tool("python3", "-c", attempts, scene.path("one", "ram"), user)
                    let lines = outcome.text.split(separator: "\n").map { $0.hasSuffix(" ENOTSUP") ? "nameless EOPNOTSUPP" : String($0) }
                    #expect(outcome.exitCode == 0 && lines.count == 56, "\(outcome)")
                    for line in lines where !line.hasSuffix(" EROFS") { #expect(others.contains(line), "user \(user): \(line)") }
                    for line in others { #expect(lines.contains(line), "user \(user): \(line)") }
                    try requireUnchanged(scene, bytes)
                }
                var status = stat()
                #expect(unsafe stat(scene.path("one", "ram"), &status) == 0 && status.st_mode == S_IFREG | 0o444, "no mode that lies")
                // Programs that write find out before they start.
                #expect(try scene.tool("cp", scene.path("one", "vda"), scene.path("one", "ram")).errors.contains("Read-only file system"))
                #expect(try scene.tool("dd", "if=/dev/zero", "of=\(scene.path("one", "ram"))", "count=1").errors.contains("Read-only"))
            }
            // Without --allow-other nobody else may look, as ever.
            try scene.mounted("--private-writes") { _ throws in
                let outcome = try scene.tool("python3", "-c", attempts, scene.path("one", "ram"), "65534")
                #expect(outcome.text.split(separator: "\n").allSatisfy { $0.hasSuffix(" EACCES") || $0 == "access False False False False" })
                #expect(outcome.errors.contains("PermissionError"))
            }
            try scene.mounted { _ throws in
                #expect(throws: POSIXError(.EROFS)) { try OpenedFile(scene.path("one", "ram"), O_RDWR) }
                let table = try String(contentsOfFile: "/proc/self/mounts", encoding: .utf8)
                #expect(table.split(separator: "\n").contains { $0.contains(" \(scene.directory) fuse.ckstore ro,") })
            }
        }
    }

    @Test func `private mappings, cached readers and direct reads see the same bytes at once`() async throws {
        try await onPlainThread {
            let seed = UInt64.random(in: .min ... .max)
            print("seed \(seed)")
            let scene = try MountScene()
            let bytes = content(12 << 20, seed: seed & 0xFFFF)
            try save(scene, bytes)
            try scene.mounted("--private-writes", "--cache", "4M") { _ throws in
                let path = scene.path("one", "ram")
                PlainThreads.run(6) { number in
                    do {
                        var random = SeededGenerator(seed: seed &+ UInt64(number))
                        for _ in 0..<12 {
                            // Each mapping for writing empties the kernel's cache under the feet of the others.
                            let file = try OpenedFile(path, number % 2 == 0 ? O_RDWR : O_RDONLY)
                            let memory = unsafe mmap(nil, bytes.count, PROT_READ | PROT_WRITE, MAP_PRIVATE, file.descriptor, 0)
                            guard unsafe memory != MAP_FAILED else { throw POSIXError(.ENOMEM) }
                            defer { unsafe munmap(memory, bytes.count) }
                            var written: [Int: UInt8] = [:]
                            for _ in 0..<400 {
                                let place = random.below(bytes.count)
                                let expected = written[place] ?? bytes[place]
                                guard unsafe memory!.load(fromByteOffset: place, as: UInt8.self) == expected else { throw Mismatch("at \(place)") }
                                if random.chance(1, in: 4) {
                                    written[place] = ~expected
                                    unsafe memory!.storeBytes(of: ~expected, toByteOffset: place, as: UInt8.self)
                                }
                                guard try file.read(at: place, 1) == [bytes[place]] else { throw Mismatch("read at \(place)") }
                            }
                            for (place, value) in written {
                                guard unsafe memory!.load(fromByteOffset: place, as: UInt8.self) == value else { throw Mismatch("lost at \(place)") }
                            }
                        }
                    } catch { Issue.record("seed \(seed), thread \(number): \(error)") }
                }
                try requireUnchanged(scene, bytes)
            }
        }
    }

    @Test(.enabled(if: FileManager.default.isExecutableFile(atPath: qemu), "\(qemu) is missing: install qemu-system-x86"))
    func `QEMU runs a machine whose main memory is a checkpoint's, and the checkpoint stays as it was`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(256))
            let bytes = content(32 << 20, seed: 41)
            try save(scene, bytes)
            let copy = scene.folder.file("copy")
            #expect(FileManager.default.createFile(atPath: copy, contents: Data(bytes)))
            try scene.mounted { _ throws in
                let refused = try RunningTool(machine(scene, socket: "refused"), program: qemu, scratch: scene.folder.path).wait(limitSeconds: 30)
                #expect(refused.exitCode == 1 && refused.errors.contains("Read-only file system"), "\(refused)")
            }
            try scene.mounted("--private-writes") { _ throws in
                let process = try RunningTool(machine(scene, socket: "qmp"), program: qemu, scratch: scene.folder.path)
                let socket = scene.folder.file("qmp")
                #expect(eventually(seconds: 30) { FileManager.default.fileExists(atPath: socket) })
                let monitor = try QMPClient.connect(path: socket)
                func memory(_ range: Range<Int>) throws -> [UInt8] {
                    let dump = scene.folder.file("dump")
                    let place: [String: JSONValue] = [
                        "val": .integer(Int64(range.lowerBound)), "size": .integer(Int64(range.count)), "filename": .string(dump),
                    ]
                    _ = try monitor.execute("pmemsave", place)
                    return [UInt8](try #require(FileManager.default.contents(atPath: dump)))
                }
                // Between them there is more than memory on this machine.
                let (low, high) = (0..<0xA0000, 1 << 20..<bytes.count)
                for range in [low, high] { #expect(try memory(range) == Array(bytes[range]), "as the checkpoint has it") }
                _ = try monitor.execute("cont")
                let isChanged = try eventually(seconds: 60) { try memory(low) != Array(bytes[low]) }
                #expect(isChanged, "the firmware has written to memory")
                try requireUnchanged(scene, bytes)
                #expect(try scene.tool("cmp", copy, scene.path("one", "ram")).exitCode == 0)
                process.send(SIGKILL)
                _ = try process.wait()
                #expect(try scene.tool("cmp", copy, scene.path("one", "ram")).exitCode == 0)
            }
        }
    }

    private func machine(_ scene: MountScene, socket: String) -> [String] {
        [
            "-machine", "pc,memory-backend=ram0", "-accel", "tcg", "-m", "32M", "-nodefaults", "-display", "none", "-S",
            "-object", "memory-backend-file,id=ram0,size=32M,mem-path=\(scene.path("one", "ram")),share=off",
            "-qmp", "unix:\(scene.folder.file(socket)),server=on,wait=off",
        ]
    }
}

private let qemu = "/usr/bin/qemu-system-x86_64"
