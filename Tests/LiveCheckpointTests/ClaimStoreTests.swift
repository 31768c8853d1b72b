// The claims about where checkpoints are kept: raw, in files on disk drives and in memory, in RAM, on flash [claims 9 to 14].

import CheckpointCore
import CheckpointStore
import FaultHarness
import Foundation
@testable import LiveCheckpoint
import Media
import Testing
import Units

@Suite(.serialized) struct ClaimStoreTests {
    /// Creates a store, takes two checkpoints of a machine at work, and compares what a new opening of the store holds with the model.
    private static func keepCheckpoints(at locator: Locator, force: Bool = false) throws {
        var expected: [String: WorkloadModel] = [:]
        do {
            let size: ByteCount? = locator.kind == .raw ? nil : .mebibytes(64)
            let store = try CheckpointStore.create(on: try createMedium(locator, size: size, force: force))
            defer { store.close() }
            let scene = try ClaimScene(store: StoreBackedDataStore(store))
            defer { scene.scene.close() }
            for name in ["1", "2"] {
                scene.submit(.read, 0..<2, slot: 0)
                try scene.checkpoint([
                    .reissueReads: {
                        scene.execute(.touchAll)
                        scene.perform(.write, 7..<9, slot: 3)
                    }
                ])
                scene.consume(0)
                expected[name] = scene.machine.modelAtStop!
            }
        }
        let store = try CheckpointStore.open(try openMedium(locator, access: .readOnly))
        defer { store.close() }
        for (name, model) in expected {
            let content = try StoreBackedDataStore(store).source(name).content()
            if let difference = WorkloadModel.difference(content["memory:ram"]!, model.memory) {
                throw TestFailure("\(locator), \(name): memory: \(difference)")
            }
            if let difference = WorkloadModel.difference(content["disk:vda"]!, model.disk) {
                throw TestFailure("\(locator), \(name): disk: \(difference)")
            }
            guard Registers(decoding: content["state:devices"]!) == model.registers else { throw TestFailure("\(locator), \(name): other registers") }
        }
    }

    private static func path(in folder: String) -> String { folder + "/ckstore-\(UUID()).ck" }

    @Test(.enabled(if: LoopDevice.isAvailable, "needs root and loop devices"))
    func `claim 9: the data store is raw data on a storage medium, without a file system`() async throws {
        try await onPlainThread {
            let device = try LoopDevice(megabytes: 64)
            try Self.keepCheckpoints(at: try Locator(kind: .raw, target: device.path))
        }
    }

    @Test func `claim 10: the data store is a file`() async throws {
        try await onPlainThread {
            let path = Self.path(in: NSTemporaryDirectory())
            defer { unsafe unlink(path) }
            try Self.keepCheckpoints(at: try Locator(kind: .file, target: path))
            var status = stat()
            guard unsafe stat(path, &status) == 0, status.st_mode & S_IFMT == S_IFREG, status.st_mode & 0o777 == 0o600 else {
                throw TestFailure("no file of ours")
            }
        }
    }

    @Test(.enabled(if: LoopDevice.isAvailable, "needs root and loop devices"))
    func `claim 11: the file is on a disk drive`() async throws {
        try await onPlainThread {
            let device = try LoopDevice(megabytes: 128)
            try device.makeFileSystem()
            let mount = try Mount(device.path)
            try Self.keepCheckpoints(at: try Locator(kind: .file, target: mount.path + "/store.ck"))
        }
    }

    @Test func `claim 12: the file is in memory`() async throws {
        try await onPlainThread {
            let path = Self.path(in: "/dev/shm")
            defer { unsafe unlink(path) }
            try Self.keepCheckpoints(at: try Locator(kind: .file, target: path))
        }
    }

    @Test func `claim 13: the memory is random access memory`() async throws {
        try await onPlainThread {
            let name = "ckstore-claim-\(UUID())"
            defer { unsafe shm_unlink("/ckstore." + name) }
            try Self.keepCheckpoints(at: try Locator(kind: .ram, target: name))
        }
    }

    @Test func `claim 14: the memory is flash memory`() async throws {
        try await onPlainThread {
            let path = Self.path(in: NSTemporaryDirectory())
            defer { unsafe unlink(path) }
            try Self.keepCheckpoints(at: try Locator(kind: .flash, target: path))
        }
    }
}
