// What a checkpoint says of its machine: a JSON region named "machine", of which `Formats/MACHINE.md` is the contract.
//
// Invariants:
// - A record names every region of the machine's memory, disks and device state.
// - Numbers fit into 53 bits, so that every JSON reader reads them right.

import Units

/// The machine of a checkpoint: enough to say whether a given virtual machine can load it, and how.
public struct MachineRecord: Codable, Sendable, Equatable {
    /// The name of the region with the record.
    public static let regionName = "machine"
    /// The version of the record that this program writes and the newest one that it reads.
    public static let currentVersion = 1

    /// How the checkpoint was taken.
    public enum Engine: String, Codable, Sendable {
        /// QEMU's background snapshot.
        case background
        /// Guest memory mapped and tracked from outside.
        case external
        /// Memory and disks copied on write by the process that runs the machine.
        case copyOnWrite
        /// The machine was paused already.
        case paused
    }

    /// One block of guest RAM.
    public struct MemoryBlock: Codable, Sendable, Equatable {
        /// The name by which the machine knows it (QEMU: the RAM block's, "pc.ram").
        public var name: String
        /// The region that holds it.
        public var region: String
        public var byteLength: UInt64
        /// The size of the pages that back it on the host: 4096, or that of huge pages.
        public var hostPageBytes: UInt64

        public init(name: String, region: String, byteLength: UInt64, hostPageBytes: UInt64) {
            self.name = name
            self.region = region
            self.byteLength = byteLength
            self.hostPageBytes = hostPageBytes
        }
    }

    /// Where a part of a memory block appears in the guest's physical address space.
    public struct PhysicalRange: Codable, Sendable, Equatable {
        public var block: String
        public var blockOffset: UInt64
        public var physicalAddress: UInt64
        public var byteLength: UInt64

        public init(block: String, blockOffset: UInt64, physicalAddress: UInt64, byteLength: UInt64) {
            self.block = block
            self.blockOffset = blockOffset
            self.physicalAddress = physicalAddress
            self.byteLength = byteLength
        }
    }

    /// One writable disk.
    public struct Disk: Codable, Sendable, Equatable {
        /// The name by which people know it: the device's or the drive's id.
        public var name: String
        /// The region that holds its content.
        public var region: String
        public var byteLength: UInt64
        /// The format of the image that the machine had it in: "raw", "qcow2".
        public var imageFormat: String
        /// The image that the machine had it in, as the machine named it.
        public var imageName: String

        public init(name: String, region: String, byteLength: UInt64, imageFormat: String, imageName: String) {
            self.name = name
            self.region = region
            self.byteLength = byteLength
            self.imageFormat = imageFormat
            self.imageName = imageName
        }
    }

    public var version: Int
    public var engine: Engine
    /// "qemu", "ckstore-reference".
    public var hypervisor: String
    /// "7.2.22".
    public var hypervisorVersion: String
    /// The versioned name: "pc-i440fx-7.2".
    public var machineType: String
    /// The guest's architecture by QEMU's name: "x86_64".
    public var architecture: String
    public var virtualCPUs: Int
    /// In the order in which the machine lists them.
    public var memoryBlocks: [MemoryBlock]
    /// By physical address; empty when it was not to be had.
    public var physicalRanges: [PhysicalRange]
    public var disks: [Disk]
    /// The region with the device state, an opaque blob; its checksum is the store's.
    public var deviceStateRegion: String
    public var deviceStateBytes: UInt64
    /// True when the machine ran at the instant of the checkpoint, so that it runs when it has been restored.
    public var wasRunning: Bool
    /// How long the machine stood still, by its own events; absent when it was paused anyway.
    public var stopMicroseconds: UInt64?
    /// The instant of the checkpoint, since 1970.
    public var takenMicroseconds: UInt64

    public init(
        engine: Engine, hypervisor: String, hypervisorVersion: String, machineType: String, architecture: String,
        virtualCPUs: Int, memoryBlocks: [MemoryBlock], physicalRanges: [PhysicalRange], disks: [Disk],
        deviceStateRegion: String, deviceStateBytes: UInt64, wasRunning: Bool, stopMicroseconds: UInt64?,
        takenMicroseconds: UInt64
    ) {
        version = Self.currentVersion
        self.engine = engine
        self.hypervisor = hypervisor
        self.hypervisorVersion = hypervisorVersion
        self.machineType = machineType
        self.architecture = architecture
        self.virtualCPUs = virtualCPUs
        self.memoryBlocks = memoryBlocks
        self.physicalRanges = physicalRanges
        self.disks = disks
        self.deviceStateRegion = deviceStateRegion
        self.deviceStateBytes = deviceStateBytes
        self.wasRunning = wasRunning
        self.stopMicroseconds = stopMicroseconds
        self.takenMicroseconds = takenMicroseconds
    }

    /// The name of the region that holds a memory block: "memory:pc.ram".
    public static func memoryRegion(_ block: String) -> String { "memory:" + escaped(block) }
    /// The name of the region that holds a disk: "disk:vda".
    public static func diskRegion(_ disk: String) -> String { "disk:" + escaped(disk) }
    /// The name of the region with the device state.
    public static let deviceStateRegionName = "state:devices"

    /// `name` without what names of regions may not have: a slash and control characters become %XX, the percent sign too, so
    /// that different names stay different, and the equals sign, which ends a region's name on command lines.
    private static func escaped(_ name: String) -> String {
        var bytes: [UInt8] = []
        for byte in name.utf8 {
            switch byte {
            case 0..<0x20, 0x7f, UInt8(ascii: "/"), UInt8(ascii: "%"), UInt8(ascii: "="):
                bytes += "%\(byte < 16 ? "0" : "")\(String(byte, radix: 16, uppercase: true))".utf8
            default: bytes.append(byte)
            }
        }
        return String(decoding: bytes, as: UTF8.self)
    }
}
