// How mounts begin and end, and what happens to the store meanwhile.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import QEMUTesting
import StoreMount
import StoreTesting
import Synchronization
import Testing
import Units

@Suite(.enabled(if: MountSupport.isAvailable, Comment(rawValue: MountSupport.reason)), .serialized)
struct LifeTests {
    @Test func `a mount is read-only, describes its checkpoints and the store, and ends with umount`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            try scene.save("one", ["ram": content(100_000, seed: 1)])
            try scene.save("odd", parent: "one", ["checkpoint.json": [1, 2, 3]])
            var serving: pid_t = 0
            try scene.mounted { process throws in
                serving = process
                let shown = try scene.run("show", scene.storePath, "one", "--json")
                #expect(try OpenedFile(scene.path("one", "checkpoint.json")).read(at: 0, 100_000) == shown.output)
                // Data is not hidden by the description.
                #expect(try OpenedFile(scene.path("odd", "checkpoint.json")).read(at: 0, 100) == [1, 2, 3])
                #expect(try scene.names("odd") == ["checkpoint.json"])
                for (path, flags) in [(scene.path("one", "ram"), O_RDWR), (scene.path("one", "new"), O_CREAT | O_WRONLY)] {
                    #expect(throws: POSIXError(.EROFS)) { try OpenedFile(path, flags) }
                }
                #expect(unsafe unlink(scene.path("one", "ram")) == -1 && errno == EROFS)
                #expect(unsafe mkdir(scene.path("new"), 0o700) == -1 && errno == EROFS)
                #expect(throws: POSIXError(.ENOENT)) { try OpenedFile(scene.path("none")) }
                #expect(throws: POSIXError(.ENOENT)) { try OpenedFile(scene.path("one", "none")) }
                var space = statvfs()
                #expect(unsafe statvfs(scene.directory, &space) == 0)
                #expect(UInt64(space.f_blocks) * 4096 <= 128 << 20 && UInt64(space.f_blocks) * 4096 > 100 << 20)
                #expect(space.f_bfree > 0 && space.f_bfree < space.f_blocks && space.f_files == 2)
                var status = stat()
                #expect(unsafe stat(scene.path("one", "ram"), &status) == 0)
                let created = try scene.store.snapshot().checkpoint(named: "one").createdNanoseconds
                #expect(UInt64(status.st_mtim.tv_sec) * 1_000_000_000 + UInt64(status.st_mtim.tv_nsec) == created)
            }
            #expect(eventually { !isRunning(serving) })
            #expect(scene.log == [])
        }
    }

    @Test func `without --follow a mount keeps what it shows: deleted checkpoints stay readable, their space unused`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(64))
            let bytes = noise(20 << 20, seed: 1)
            try scene.save("old", ["ram": bytes])
            try scene.mounted { _ throws in
                #expect(try scene.run("delete", scene.storePath, "old").exitCode == 0)
                try scene.save("new", ["ram": content(4096, seed: 9)])
                // Fill what is free: the deleted pages' segments must not be among it.
                var number = 0
                while (try? scene.save("fill\(number)", ["ram": noise(4 << 20, seed: UInt64(100 + number))])) != nil { number += 1 }
                #expect(number > 0)
                #expect(try scene.names() == ["old"])
                #expect(try OpenedFile(scene.path("old", "ram")).read(at: 0, bytes.count) == bytes)
                #expect(try scene.run("save", scene.storePath, "more", "--memory", "ram=\(scene.storePath)").exitCode == 4)
            }
            let writable = eventually { (try? scene.save("more", ["ram": noise(4 << 20, seed: 7)])) != nil }
            #expect(writable, "the mount is gone, and so is what it held")
            #expect(scene.log == [])
        }
    }

    @Test func `with --follow checkpoints come and go, and open files stay`() async throws {
        try await onPlainThread {
            let scene = try MountScene(.mebibytes(64))
            let bytes = noise(20 << 20, seed: 1)
            try scene.save("old", ["ram": bytes])
            try scene.mounted("--follow") { _ throws in
                #expect(try scene.names() == ["old"])
                var file: OpenedFile? = try OpenedFile(scene.path("old", "ram"))
                #expect(try file!.read(at: 0, 10) == Array(bytes[..<10]))
                try scene.save("new", parent: "old", ["ram": content(5000, seed: 2)])
                #expect(try OpenedFile(scene.path("new", "ram")).read(at: 0, 6000) == content(5000, seed: 2), "a new name is there at once")
                try scene.store.delete(["old"])
                #expect(eventually(seconds: 3) { (try? scene.names()) == ["new"] })
                #expect(eventually(seconds: 3) { (try? OpenedFile(scene.path("old", "ram"))) == nil })
                #expect(try file!.read(at: 0, bytes.count) == bytes, "the open file stays as it was")
                let shown = try scene.run("show", scene.storePath, "new", "--json")
                let description = try OpenedFile(scene.path("new", "checkpoint.json"))
                #expect(try description.read(at: 0, 100_000) == shown.output, "its parent has no name any more")
                // What the open file needs is held as long as it is open.
                var number = 0
                while (try? scene.save("fill\(number)", ["ram": noise(4 << 20, seed: UInt64(100 + number))])) != nil { number += 1 }
                #expect(try file!.read(at: 8 << 20, 1 << 20) == Array(bytes[8 << 20..<9 << 20]))
                file = nil
                #expect(eventually { (try? scene.save("more", ["ram": noise(4 << 20, seed: 7)])) != nil })
                #expect(Set(try scene.names()) == Set(["new", "more"] + (0..<number).map { "fill\($0)" }))
                try scene.store.delete(["fill0"])
                try scene.save("old", ["ram": [7]])
                let isAnother = eventually(seconds: 3) { (try? OpenedFile(scene.path("old", "ram")).read(at: 0, 10)) == [7] }
                #expect(isAnother, "another of the same name")
                #expect(scene.log == [])
            }
        }
    }

    @Test func `--checkpoint and --generation choose what is shown`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            for name in ["a", "b", "c"] { try scene.save(name, ["ram": content(5000, seed: UInt64(name.utf8.first!))]) }
            try scene.mounted("--checkpoint", "b") { _ throws in
                #expect(try scene.names() == ["b"])
                #expect(throws: POSIXError(.ENOENT)) { try OpenedFile(scene.path("a")) }
                #expect(try OpenedFile(scene.path("b", "ram")).read(at: 0, 5000) == content(5000, seed: 98))
            }
            let generation = try scene.store.snapshot().generation.rawValue
            try scene.mounted("--generation", "\(generation - 1)") { _ throws in
                #expect(Set(try scene.names()) == ["a", "b"])
            }
        }
    }

    @Test func `a killed mount is named as such, taken off by fusermount3, and the store is as before`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            try scene.save("one", ["ram": content(5000, seed: 1)])
            let process = try scene.mount()
            #expect(try scene.names() == ["one"])
            kill(process, SIGKILL)
            #expect(eventually { !isRunning(process) })
            #expect(throws: (any Error).self) { try OpenedFile(scene.path("one", "ram")) }
            let again = try scene.run("mount", scene.storePath, scene.directory)
            #expect(again.exitCode == 6 && again.errors.contains("fusermount3 -u \(scene.directory)"), "\(again.errors)")
            #expect(try scene.tool("fusermount3", "-u", scene.directory).exitCode == 0)
            try scene.mounted { _ throws in
                #expect(try OpenedFile(scene.path("one", "ram")).read(at: 0, 5000) == content(5000, seed: 1))
            }
            #expect(try scene.run("verify", scene.storePath, "--deep").exitCode == 0)
        }
    }

    @Test func `a mount that was detached leaves alone what has come to its place`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            try scene.save("one", ["ram": content(5000, seed: 1)])
            let lines = Mutex<[String]>([])
            let log = MountLog { line in lines.withLock { $0.append(line) } }
            let mount = try StoreMount(scene.store, MountOptions(path: scene.directory), log: log) { _, _ in [] }
            var file: OpenedFile? = try OpenedFile(scene.path("one", "ram"))
            #expect(try scene.tool("umount", "-l", scene.directory).exitCode == 0)
            #expect(try scene.tool("mount", "-t", "tmpfs", "other", scene.directory).exitCode == 0)
            #expect(FileManager.default.createFile(atPath: scene.path("sign"), contents: nil))
            #expect(try file!.read(at: 0, 10) == Array(content(5000, seed: 1)[..<10]))
            try mount.unmount(detach: false)
            try mount.unmount(detach: true)
            #expect(FileManager.default.fileExists(atPath: scene.path("sign")), "unmounting takes off another mount")
            file = nil
            mount.wait()
            #expect(FileManager.default.fileExists(atPath: scene.path("sign")), "the end of the mount takes off another one")
            #expect(lines.withLock { $0 } == [])
            #expect(try scene.tool("umount", scene.directory).exitCode == 0)
        }
    }

    @Test func `signals unmount: at once, or with the last open file`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            try scene.save("one", ["ram": content(50_000, seed: 1)])
            for signal in [SIGINT, SIGTERM] {
                let tool = try RunningTool(["mount", scene.storePath, scene.directory, "--foreground"], scratch: scene.folder.path)
                #expect(eventually { (try? scene.names()) == ["one"] })
                tool.send(signal)
                let outcome = try tool.wait(limitSeconds: 20)
                #expect(outcome.exitCode == 0 && outcome.errors == "" && outcome.text.hasPrefix("mounted file:"), "\(outcome)")
                #expect(try scene.names() == [])
            }
            let process = try scene.mount()
            var file: OpenedFile? = try OpenedFile(scene.path("one", "ram"))
            kill(process, SIGTERM)
            #expect(eventually { (try? scene.names()) == [] }, "the name is gone at once")
            #expect(try file!.read(at: 0, 50_000) == content(50_000, seed: 1), "what is open goes on")
            #expect(isRunning(process))
            file = nil
            #expect(eventually { !isRunning(process) })
        }
    }

    @Test func `what can't be mounted on is refused with what would be right`() async throws {
        try await onPlainThread {
            let scene = try MountScene()
            try scene.save("one", ["ram": [1]])
            func expect(_ code: Int32, _ text: String, _ arguments: String...) throws {
                let outcome = try scene.run(["mount"] + arguments)
                #expect(outcome.exitCode == code && outcome.errors.contains(text), "\(arguments): \(outcome)")
            }
            try expect(5, "No such file", scene.storePath, scene.folder.file("none"))
            try expect(2, "not a directory", scene.storePath, scene.storePath)
            try expect(2, "not empty", scene.storePath, scene.folder.path)
            try expect(5, "no checkpoint of that name", scene.storePath, scene.directory, "--checkpoint", "none")
            try expect(5, "can't open", scene.folder.file("none"), scene.directory)
            try expect(2, "at least 4.0 MiB", scene.storePath, scene.directory, "--cache", "1M")
            try expect(2, "--generation", scene.storePath, scene.directory, "--follow", "--generation", "1")
            let json = try scene.run("mount", scene.storePath, scene.storePath, "--json")
            let error = try JSONSerialization.jsonObject(with: Data(json.output)) as? [String: [String: Any]]
            #expect(error?["error"]?["code"] as? String == "invalid-input")
            try scene.mounted { _ throws in
                try expect(6, "something is mounted", scene.storePath, scene.directory)
            }
            #expect(try scene.names() == [])
        }
    }
}
