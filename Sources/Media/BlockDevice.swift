// What the system knows about the block device that a node names or a file lies on.

import CLinux
import SystemPackage
import Units

/// A block device by its numbers.
struct BlockDevice: Sendable {
    var major: UInt32
    var minor: UInt32

    /// The device that `descriptor` is, or that its file lies on.
    init(under descriptor: Descriptor, medium: String) throws(MediumError) {
        let status = try descriptor.status(medium: medium)
        major = status.major
        minor = status.minor
    }

    private var directory: String { "/sys/dev/block/\(major):\(minor)" }

    /// The unit in which it erases what is discarded, or 0 when unknown.
    var discardUnit: ByteCount {
        // A partition's queue is its disk's.
        for queue in ["\(directory)/queue", "\(directory)/../queue"] {
            let text = ProcessFiles.text("\(queue)/discard_granularity")
            if let unit = text?.split(separator: "\n").first.flatMap({ UInt64($0) }) { return ByteCount(unit) }
        }
        return .zero
    }

    /// The node that the system itself made for it, so that all lock the same inode however they came
    /// to it; nil where there is none.
    var canonicalNode: String? {
        let properties = ProcessFiles.text("\(directory)/uevent")?.split(separator: "\n") ?? []
        guard let name = properties.first(where: { $0.hasPrefix("DEVNAME=") })?.dropFirst(8) else { return nil }
        var status = ck_file_status()
        guard unsafe ck_status_at("/dev/\(name)", &status) == 0, status.type == CK_BLOCK, status.major == major,
            status.minor == minor
        else { return nil }
        return "/dev/\(name)"
    }

    /// Where it is mounted, as far as this process sees.
    var mountPoint: String? {
        for line in ProcessFiles.text("/proc/self/mountinfo")?.split(separator: "\n") ?? [] {
            let words = line.split(separator: " ")
            if words.count > 4, words[2] == "\(major):\(minor)" { return String(words[4]) }
        }
        return nil
    }
}
