// What machine a guest gets.

import CheckpointCore
import Units

/// A guest's machine.
public struct GuestOptions: Sendable {
    /// What the guest's memory is on the host.
    public enum Memory: Sendable {
        /// QEMU's default: private anonymous memory.
        case anonymous
        /// A memfd that other processes can map: what the external engine wants.
        case shared
        /// A memfd of 2 MiB pages that other processes can map; see `HugePages`.
        case sharedHugePages
    }

    /// A virtio disk, made empty for the guest.
    public struct Disk: Sendable {
        /// Its image's format.
        public enum Format: String, Sendable { case raw, qcow2 }
        /// How it stands on QEMU's command line.
        public enum Style: Sendable {
            /// -blockdev, with the node names "diskN" and "fileN".
            case node
            /// -drive if=none with the id "diskN".
            case drive
        }
        public var format: Format
        public var size: ByteCount
        public var style: Style

        public init(_ format: Format, size: ByteCount = .mebibytes(64), style: Style = .node) {
            self.format = format
            self.size = size
            self.style = style
        }
    }

    /// Size of the guest's memory.
    public var memorySize: ByteCount
    public var memory: Memory
    public var virtualCPUs: Int
    public var disks: [Disk]
    /// More arguments for QEMU.
    public var extraArguments: [String]

    public init(
        memorySize: ByteCount = .mebibytes(256), memory: Memory = .anonymous, virtualCPUs: Int = 1, disks: [Disk] = [],
        extraArguments: [String] = []
    ) {
        self.memorySize = memorySize
        self.memory = memory
        self.virtualCPUs = virtualCPUs
        self.disks = disks
        self.extraArguments = extraArguments
    }

    /// The memory block's name in QEMU's migration stream.
    public var memoryBlockName: String { memory == .anonymous ? "pc.ram" : "ram" }

    var memoryArguments: [String] {
        let megabytes = "\(memorySize.rawValue >> 20)M"
        let huge = memory == .sharedHugePages ? ",hugetlb=on,hugetlbsize=2M" : ""
        return memory == .anonymous
            ? ["-machine", "pc", "-m", megabytes]
            : [
                "-object", "memory-backend-memfd,id=ram,share=on,size=\(megabytes)\(huge)",
                "-machine", "pc,memory-backend=ram", "-m", megabytes,
            ]
    }
}
