// What a capture calls its things in QEMU.
//
// Invariants:
// - Everything that a capture makes in QEMU has a name that starts with "ckstore-" and the checkpoint's id, so that another process
//   can find it there and knows what belongs together.
// - Names of block nodes have at most 31 characters, QEMU's limit.

import CheckpointCore
import StoreFormat
import Units

/// The names of one checkpoint's things in QEMU.
struct CaptureNames: Sendable {
    static let prefix = "ckstore-"
    let checkpoint: CheckpointID

    /// What all of them start with.
    var all: String { Self.prefix + checkpoint.description }
    /// The object that holds the note.
    var note: String { all + "-note" }
    /// The mark that the guest is stopped for a moment, by the capture with this note.
    static func stopMark(of note: String) -> String { note + "-stop" }
    /// The folder for sockets, below the scratch folder.
    var folder: String { all }

    func disk(_ index: Int) -> DiskNames { DiskNames(overlay: "\(all)-\(index)") }

    /// The bitmap of what was written to `disk` since a checkpoint. It names the disk and its length too: if they are not the
    /// same any more, the checkpoint has no content for the bitmap to be relative to.
    static func bitmap(since checkpoint: CheckpointID, of disk: WritableDisk) -> String {
        "\(prefix)\(checkpoint)-\(disk.byteLength)-\(disk.name)"
    }
}

/// The names of the things that belong to one disk of a capture.
struct DiskNames: Sendable {
    /// The node that takes the guest's writes. The export of its base has this name too.
    let overlay: String
    /// The node of the overlay's file.
    var file: String { overlay + "f" }
    /// The node between the two that can slow writes down, and its group of limits.
    var throttle: String { overlay + "t" }
    var limits: String { overlay + "-limits" }
    /// The node that writes are logged to, and the filter above the overlay that sends them there.
    var log: String { overlay + "l" }
    var logFilter: String { overlay + "m" }
    /// The filter of the commit.
    var commitFilter: String { overlay + "c" }
    var createJob: String { overlay + "-create" }
    var logJob: String { overlay + "-log" }
    var commitJob: String { overlay + "-commit" }
}
