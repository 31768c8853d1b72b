// Overlays of a machine that has ended while its disks were being captured: committed into their images by qemu-img.
//
// Invariants:
// - An overlay is deleted only when everything in it is in its image.
// - It can be repeated: an overlay that is not there any more is done. One that is there has nothing older than its image, since guests
//   move to their images while they stand still, and overlays are deleted before they run again.
// - What the overlay's own header says is not followed: QEMU's user could write it. The image was noted when the capture began.

import CLinux
import CheckpointCore
import Glibc
import QMP

/// Puts a lost machine's writes where the next one finds them: into its images.
public enum LostMachine {
    /// An overlay, and what it lies over.
    public struct Overlay: Codable, Sendable, Equatable {
        public var path: String
        /// The image; nil when it is no file of this host.
        public var image: String?
        public var imageFormat: String

        public init(path: String, image: String?, imageFormat: String) {
            self.path = path
            self.image = image
            self.imageFormat = imageFormat
        }
    }

    /// Commits overlays into their images, and deletes them. Only when the machine has ended: nobody else may use the images.
    /// - Parameter overlays: there or not.
    /// - Returns: those that were committed.
    /// - Throws: `.notFound` without qemu-img, `.ioFailed` when it fails; the error names the file and the command. All others have been tried.
    @discardableResult
    public static func commit(_ overlays: [Overlay]) throws(EngineError) -> [String] {
        var done: [String] = []
        var failure: EngineError?
        for overlay in overlays where unsafe access(overlay.path, F_OK) == 0 {
            do throws(EngineError) {
                try commit(overlay)
                done.append(overlay.path)
            } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
        return done
    }

    private static func commit(_ overlay: Overlay) throws(EngineError) {
        var status = ck_file_status()
        let found = unsafe ck_status_at(overlay.path, &status)
        if found < 0 { throw EngineError(system: "look at the overlay", -found, place: overlay.path) }
        // One that QEMU had not begun to write has nothing in it.
        if status.size > 0 { try merge(overlay) }
        let result = unsafe ck_remove(overlay.path)
        if result < 0 { throw EngineError(system: "delete the committed overlay", -result, place: overlay.path) }
    }

    private static func merge(_ overlay: Overlay) throws(EngineError) {
        guard let image = overlay.image else {
            throw EngineError(
                .unsupported, "the machine has ended, and its image is no file that its overlay could be committed into",
                remedy: "Its last writes are in the overlay: `qemu-img rebase -u -f qcow2 -F \(overlay.imageFormat) -b IMAGE \(overlay.path)`, then `qemu-img commit`.",
                place: overlay.path)
        }
        let options = [
            "driver=qcow2", "file.driver=file", "file.filename=\(escaped(overlay.path))", "backing.driver=\(overlay.imageFormat)",
            "backing.file.driver=file", "backing.file.filename=\(escaped(image))",
        ]
        let child = try ChildProcess.spawn(
            executable: "qemu-img", arguments: ["commit", "-q", "--image-opts", options.joined(separator: ",")], diesWithParent: false,
            inNewSession: true)
        let status = try child.wait(timeoutMilliseconds: nil)
        guard case .exited(0)? = status else {
            throw EngineError(
                .ioFailed, "the machine has ended, and its overlay could not be committed into its image (qemu-img: \(status.map { "\($0)" } ?? "no status"))",
                remedy: "Its last writes are in there. Before the machine is started again, run `qemu-img commit -f qcow2 \(overlay.path)` and delete it.",
                place: overlay.path)
        }
    }

    /// A path as a value among QEMU's options.
    private static func escaped(_ path: String) -> String { path.split(separator: ",", omittingEmptySubsequences: false).joined(separator: ",,") }
}
