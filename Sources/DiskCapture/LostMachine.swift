// Overlays of a machine that has ended while its disks were being captured: committed into their images by qemu-img.
//
// Invariants:
// - An overlay is deleted only when everything in it is in its image.
// - It can be repeated: an overlay that is not there any more is done.

import CLinux
import CheckpointCore
import Glibc
import QMP

/// Puts a lost machine's writes where the next one finds them: into its images.
public enum LostMachine {
    /// Commits overlays into the images that they name, and deletes them. Only when the machine has ended: nobody else may use the images.
    /// - Parameter overlays: paths of overlays, there or not.
    /// - Returns: those that were committed.
    /// - Throws: `.notFound` without qemu-img, `.ioFailed` when it fails; the error names the file and the command. All others have been tried.
    @discardableResult
    public static func commit(_ overlays: [String]) throws(EngineError) -> [String] {
        var done: [String] = []
        var failure: EngineError?
        for overlay in overlays where unsafe access(overlay, F_OK) == 0 {
            do throws(EngineError) {
                try commit(overlay)
                done.append(overlay)
            } catch { failure = failure ?? error }
        }
        if let failure { throw failure }
        return done
    }

    private static func commit(_ overlay: String) throws(EngineError) {
        let child = try ChildProcess.spawn(
            executable: "qemu-img", arguments: ["commit", "-q", "-f", "qcow2", overlay], diesWithParent: false, inNewSession: true)
        let status = try child.wait(timeoutMilliseconds: nil)
        guard case .exited(0)? = status else {
            throw EngineError(
                .ioFailed, "the machine has ended, and its overlay could not be committed into its image (qemu-img: \(status.map { "\($0)" } ?? "no status"))",
                remedy: "Its last writes are in there. Before the machine is started again, run `qemu-img commit -f qcow2 \(overlay)` and delete it.",
                place: overlay)
        }
        let result = unsafe ck_remove(overlay)
        if result < 0 { throw EngineError(system: "delete the committed overlay", -result, place: overlay) }
    }
}
