// swift-tools-version: 6.2
import PackageDescription

/// Every Swift target of this package: language mode 6, strict memory safety, warnings are errors.
let strict: [SwiftSetting] = [
    .swiftLanguageMode(.v6),
    .strictMemorySafety(),
    .treatAllWarnings(as: .error),
]

/// C shims are optimised in every configuration: they hold copy loops that debug test runs depend on.
let shim: [CSetting] = [.unsafeFlags(["-O2", "-Wall", "-Wextra", "-Werror"])]

let package = Package(
    name: "ckstore",
    products: [
        .executable(name: "ckstore", targets: ["ckstore"]),
        .executable(name: "table-example", targets: ["TableExample"]),
        .library(name: "CheckpointStore", targets: ["CheckpointStore"]),
        .library(name: "CheckpointStream", targets: ["CheckpointStream"]),
        // The format alone, for tools and fuzzers that need no engine.
        .library(name: "StoreFormat", targets: ["StoreFormat", "PageCodec", "Units"]),
        .library(name: "CKStoreC", type: .dynamic, targets: ["CKStoreC"]),
        // What every engine shares, and QEMU's engine, for programs that take checkpoints themselves.
        .library(name: "CheckpointCore", targets: ["CheckpointCore", "MachineMemory", "VirtualDisks", "LiveCheckpoint", "Rollback", "GuestRollback"]),
        .library(name: "QEMUEngine", targets: ["QEMUEngine"]),
        .library(name: "ReferenceMachine", targets: ["ReferenceMachine"]),
        .library(name: "MigrationStream", targets: ["MigrationStream", "CheckpointCore", "Units"]),
        // The plugin that nbdkit loads to log a disk's writes.
        .library(name: "ckstore-nbd-log", type: .dynamic, targets: ["CNBDLog"]),
    ],
    dependencies: [
        .package(url: "https://github.com/apple/swift-argument-parser", from: "1.8.2"),
        .package(url: "https://github.com/apple/swift-system", from: "1.8.1"),
        .package(url: "https://github.com/HdrHistogram/hdrhistogram-swift", from: "0.2.0"),
    ],
    targets: [
        // The C boundary: shims of ours, and the system libraries.
        .target(name: "CLinux", cSettings: shim),
        .target(name: "CPageCodec", dependencies: ["CXXHash"], cSettings: shim),
        .systemLibrary(name: "CPMem", pkgConfig: "libpmem", providers: [.apt(["libpmem-dev"])]),
        .systemLibrary(name: "CLZ4", pkgConfig: "liblz4", providers: [.apt(["liblz4-dev"])]),
        .systemLibrary(name: "CXXHash", pkgConfig: "libxxhash", providers: [.apt(["libxxhash-dev"])]),
        .systemLibrary(name: "CBlkid", pkgConfig: "blkid", providers: [.apt(["libblkid-dev"])]),
        .systemLibrary(name: "CNBD", pkgConfig: "libnbd", providers: [.apt(["libnbd-dev"])]),
        // File systems in user space: libfuse, and a read-only one on it.
        .systemLibrary(name: "CFUSE", pkgConfig: "fuse3", providers: [.apt(["libfuse3-dev"])]),
        .target(name: "CStoreMount", dependencies: ["CFUSE"], cSettings: shim),
        // The memory of other processes: descriptors taken over, userfaultfd, page scans.
        .target(name: "CLiveMemory", cSettings: shim),
        .target(name: "CNBDLog", cSettings: shim),
        // /dev/kvm, and guests of its own for the reference machine.
        .target(name: "CKVM", cSettings: shim),
        .target(name: "CKVMGuests", cSettings: shim),
        // What the bench compares checkpoints of memory with.
        .target(name: "CLiveBench", dependencies: ["CLZ4"], cSettings: shim),

        // Layers, lowest first; imports point only downward.
        .target(name: "Units", swiftSettings: strict),
        .target(name: "Threading", swiftSettings: strict),
        .target(
            name: "Media",
            dependencies: ["Units", "CLinux", "CPMem", "CBlkid", .product(name: "SystemPackage", package: "swift-system")],
            swiftSettings: strict),
        .target(name: "PageCodec", dependencies: ["Units", "CLZ4", "CXXHash", "CPageCodec"], swiftSettings: strict),
        .target(name: "StoreFormat", dependencies: ["Units", "PageCodec"], swiftSettings: strict),
        .target(
            name: "CheckpointStore", dependencies: ["Units", "Threading", "Media", "PageCodec", "StoreFormat", "CLinux"],
            swiftSettings: strict),
        // Checkpoints and what changed between them as a stream of frames: sent, received, kept in step.
        .target(
            name: "CheckpointStream",
            dependencies: ["CheckpointStore", "StoreFormat", "PageCodec", "Media", "Threading", "Units"], swiftSettings: strict),
        // A store drawn as one page.
        .target(
            name: "StoreReport", dependencies: ["CheckpointStore", "StoreFormat", "Media", "Units"],
            resources: [.embedInCode("Page")], swiftSettings: strict),
        // Checkpoints as files and folders, read where they are.
        .target(
            name: "StoreMount", dependencies: ["CheckpointStore", "StoreFormat", "CStoreMount", "Threading", "Units"],
            swiftSettings: strict),
        // Live checkpoints: the half that faces the store, and what restoring shares between engines.
        .target(
            name: "CheckpointCore",
            dependencies: ["CheckpointStore", "StoreFormat", "PageCodec", "Media", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // The memory of this process: mapped, its writes caught and tracked, copied on write.
        .target(
            name: "MachineMemory", dependencies: ["CheckpointCore", "CLiveMemory", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // Virtual disks: requests in order, copy-on-write overlays, checkpoints of a disk in use.
        .target(
            name: "VirtualDisks",
            dependencies: ["MachineMemory", "CheckpointCore", "PageCodec", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // Checkpoints of machines and programs that run in this process.
        .target(
            name: "LiveCheckpoint",
            dependencies: ["VirtualDisks", "MachineMemory", "CheckpointCore", "StoreFormat", "Threading", "Units"],
            swiftSettings: strict),
        // A small virtual machine on /dev/kvm: how a monitor is linked with checkpoints.
        .target(
            name: "ReferenceMachine",
            dependencies: [
                "LiveCheckpoint", "VirtualDisks", "MachineMemory", "CheckpointCore", "PageCodec", "CKVM", "CKVMGuests", "CLinux", "Threading",
                "Units",
            ],
            swiftSettings: strict),
        // Guests rolled back alone, with their I/O queues.
        .target(
            name: "GuestRollback", dependencies: ["MachineMemory", "CheckpointCore", "StoreFormat", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // Memory that can be rolled back to its last checkpoint, by six strategies.
        .target(
            name: "Rollback",
            dependencies: ["MachineMemory", "CheckpointCore", "CheckpointStore", "PageCodec", "Media", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // QEMU's monitor.
        .target(name: "QMP", dependencies: ["CheckpointCore", "CLinux", "Threading"], swiftSettings: strict),
        // QEMU's migration stream: bytes to pages and back, no I/O.
        .target(name: "MigrationStream", dependencies: ["CheckpointCore", "Units"], swiftSettings: strict),
        // The memory of a running process, seen and tracked from outside.
        .target(
            name: "LiveMemory", dependencies: ["MachineMemory", "CheckpointCore", "CLiveMemory", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        // Disks of a running QEMU at one instant.
        .target(
            name: "DiskCapture", dependencies: ["QMP", "CNBD", "CheckpointCore", "CLinux", "Threading", "Units"],
            swiftSettings: strict),
        .target(
            name: "QEMUEngine",
            dependencies: [
                "QMP", "MigrationStream", "LiveMemory", "DiskCapture", "CheckpointCore", "CheckpointStore", "CLinux",
                "Threading", "Units",
            ],
            swiftSettings: strict),
        // The C interface: the header, and what stands behind it. Nothing in the package depends on it.
        .systemLibrary(name: "CKStoreHeader"),
        .target(
            name: "CKStoreC", dependencies: ["CKStoreHeader", "CheckpointStore", "StoreFormat", "Media", "Units"],
            exclude: ["exports.map", "install", "ckstore.pc.in"], swiftSettings: strict,
            linkerSettings: [
                // libckstore.so for programs that know nothing of Swift: its own runtime inside, and
                // only the C functions visible.
                .unsafeFlags([
                    "-static-stdlib", "-Xlinker", "-soname=libckstore.so.1",
                    "-Xlinker", "--version-script=\(Context.packageDirectory)/Sources/CKStoreC/exports.map",
                    "-Xlinker", "-z", "-Xlinker", "nodelete",
                ])
            ]),
        .executableTarget(
            name: "ckstore",
            dependencies: [
                "CheckpointStore", "CheckpointStream", "StoreMount", "StoreReport", "Media", "Units", "PageCodec", "StoreFormat", "CLinux",
                "CheckpointCore", "MachineMemory", "LiveCheckpoint", "Rollback", "CLiveBench", "QMP", "MigrationStream", "LiveMemory", "DiskCapture", "QEMUEngine", "Threading",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
                .product(name: "Histogram", package: "hdrhistogram-swift"),
            ],
            swiftSettings: strict),
        // How a program keeps checkpoints of its memory.
        .executableTarget(
            name: "TableExample",
            dependencies: [
                "LiveCheckpoint", "MachineMemory", "CheckpointCore", "CheckpointStore", "Media", "Threading", "Units",
                .product(name: "ArgumentParser", package: "swift-argument-parser"),
            ],
            swiftSettings: strict),

        // The fault-injecting medium and the deterministic simulator that the tests run on.
        .target(
            name: "FaultHarness", dependencies: ["Units", "Media"], path: "Tests/FaultHarness", swiftSettings: strict),

        // The model that stores are compared with, for every test target that has one.
        .target(
            name: "StoreTesting",
            dependencies: ["CheckpointStore", "CheckpointStream", "StoreFormat", "FaultHarness", "Media", "Units"],
            path: "Tests/StoreTesting", swiftSettings: strict),
        // Saves in a loop until it is killed.
        .executableTarget(
            name: "CrashWriter", dependencies: ["CheckpointStore", "CheckpointStream", "StoreFormat", "StoreTesting", "FaultHarness", "Media", "Units"],
            path: "Tests/CrashWriter", swiftSettings: strict),

        .testTarget(
            name: "StoreMountTests",
            dependencies: [
                "StoreMount", "CheckpointStore", "CheckpointCore", "MigrationStream", "StoreTesting", "FaultHarness", "QEMUTesting", "QMP", "Media", "Units",
            ],
            swiftSettings: strict),
        .testTarget(name: "MediaTests", dependencies: ["Media", "Units"], swiftSettings: strict),
        .testTarget(
            name: "StoreFormatTests", dependencies: ["StoreFormat", "PageCodec", "Units"], swiftSettings: strict),
        .testTarget(
            name: "CheckpointStoreTests",
            dependencies: ["CheckpointStore", "StoreFormat", "StoreTesting", "FaultHarness", "Media", "Threading", "Units"],
            swiftSettings: strict),
        // Streams between stores: cut, damaged, out of order, gone on from.
        .testTarget(
            name: "CheckpointStreamTests",
            dependencies: [
                "CheckpointStream", "CheckpointStore", "StoreFormat", "PageCodec", "StoreTesting", "FaultHarness", "Media", "Threading", "Units",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "StoreReportTests",
            dependencies: ["StoreReport", "CheckpointStore", "StoreFormat", "StoreTesting", "FaultHarness", "Media", "Units"],
            swiftSettings: strict),
        // Verify, scrub and salvage on damaged stores.
        .testTarget(
            name: "StoreCareTests",
            dependencies: ["CheckpointStore", "CheckpointStream", "StoreFormat", "PageCodec", "StoreTesting", "FaultHarness", "Media", "Threading", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "CrashTests",
            dependencies: [
                "CheckpointStore", "CheckpointStream", "StoreFormat", "StoreTesting", "CrashWriter", "FaultHarness", "Media", "Units",
            ],
            swiftSettings: strict),
        // The engine and the reader in Python, on each other's stores.
        .testTarget(
            name: "FormatsTests", dependencies: ["CheckpointStore", "CheckpointStream", "StoreFormat", "FaultHarness", "Media", "Units"],
            swiftSettings: strict),
        // Runs what the product CKStoreC is built as; does not depend on it, since the linker's settings for it are no good here.
        .testTarget(name: "CInterfaceTests", exclude: ["program.c"], swiftSettings: strict),
        .testTarget(
            name: "CommandLineTests", dependencies: ["CheckpointStore", "Media", "QEMUTesting", "Units"],
            swiftSettings: strict),

        // Real guests in real QEMUs, for every test target that needs one.
        .target(
            name: "QEMUTesting", dependencies: ["QMP", "CheckpointCore", "Threading", "CLinux", "Units"],
            path: "Tests/QEMUTesting", swiftSettings: strict),
        .testTarget(
            name: "CheckpointCoreTests",
            dependencies: ["CheckpointCore", "CheckpointStore", "FaultHarness", "StoreTesting", "Media", "Threading", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "MachineMemoryTests",
            dependencies: ["MachineMemory", "CheckpointCore", "CLinux", "FaultHarness", "StoreTesting", "CheckpointStore", "Media", "Threading", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "LiveCheckpointTests",
            dependencies: [
                "LiveCheckpoint", "VirtualDisks", "MachineMemory", "CheckpointCore", "CheckpointStore", "StoreFormat", "FaultHarness", "StoreTesting", "CNBD",
                "Media", "CLinux", "Threading", "Units",
            ],
            swiftSettings: strict),
        // Restores a machine in a process of its own and lets it run.
        .executableTarget(
            name: "ReferenceMachineRunner", dependencies: ["ReferenceMachine", "VirtualDisks", "MachineMemory", "CheckpointCore", "Units"],
            path: "Tests/ReferenceMachineRunner", swiftSettings: strict),
        .testTarget(
            name: "ReferenceMachineTests",
            dependencies: [
                "ReferenceMachine", "ReferenceMachineRunner", "LiveCheckpoint", "VirtualDisks", "MachineMemory", "CheckpointCore", "CheckpointStore",
                "PageCodec", "FaultHarness", "StoreTesting", "Threading", "Units",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "GuestRollbackTests",
            dependencies: [
                "GuestRollback", "MachineMemory", "CheckpointCore", "CheckpointStore", "StoreFormat", "FaultHarness", "Media", "Threading", "Units",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "VirtualDiskTests",
            dependencies: ["VirtualDisks", "MachineMemory", "CheckpointCore", "PageCodec", "FaultHarness", "Media", "Threading", "Units"],
            swiftSettings: strict),
        // Takes checkpoints until it is killed, or is the backup process of one that does.
        .executableTarget(
            name: "RollbackVictim",
            dependencies: ["Rollback", "MachineMemory", "CheckpointCore", "FaultHarness", "Media", "PageCodec", "Threading", "Units"],
            path: "Tests/RollbackVictim", swiftSettings: strict),
        .testTarget(
            name: "RollbackTests",
            dependencies: [
                "Rollback", "RollbackVictim", "MachineMemory", "CheckpointCore", "CheckpointStore", "FaultHarness", "Media", "PageCodec",
                "Threading", "Units",
            ],
            swiftSettings: strict),
        .testTarget(
            name: "QMPTests", dependencies: ["QMP", "CheckpointCore", "FaultHarness", "QEMUTesting", "Threading", "CLinux"],
            swiftSettings: strict),
        .testTarget(
            name: "MigrationStreamTests", dependencies: ["MigrationStream", "CheckpointCore", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "LiveMemoryTests",
            dependencies: ["LiveMemory", "CheckpointCore", "FaultHarness", "Threading", "CLinux", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "DiskCaptureTests",
            dependencies: ["DiskCapture", "QMP", "CheckpointCore", "CheckpointStore", "Media", "QEMUTesting", "Threading", "Units"],
            swiftSettings: strict),
        .testTarget(
            name: "QEMUEngineTests",
            dependencies: [
                "QEMUEngine", "QMP", "MigrationStream", "LiveMemory", "DiskCapture", "CheckpointCore", "CheckpointStore",
                "Media", "QEMUTesting", "FaultHarness", "Threading", "Units",
            ],
            swiftSettings: strict),
    ]
)
