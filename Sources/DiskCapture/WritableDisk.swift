// The disks that a machine can write to, as its monitor lists them.
//
// Invariants:
// - Every disk that the guest can change is listed, or listing them throws: none is left out in silence.
// - A disk's name is unique within its machine and does not depend on how often QEMU was started.

import CheckpointCore
import QMP
import Units

/// A disk that the guest can write to.
public struct WritableDisk: Sendable, Equatable {
    /// The name by which people know it: the device's id, else the drive's, else the block node's. Unique in its machine.
    public let name: String
    /// The drive's id; nil when the device has its block node from `-blockdev`.
    public let deviceID: String?
    /// The block node that the device writes to.
    public let nodeName: String
    /// What the guest sees of it.
    public let byteLength: ByteCount
    /// QEMU's name of the image's format: "qcow2", "raw".
    public let imageFormat: String
    /// The image as QEMU names it: a path, or an address in JSON.
    public let imageName: String

    /// The path of the image, if it is a regular file that QEMU opened by its path alone.
    var imagePath: String? {
        guard !imageName.isEmpty, !imageName.hasPrefix("json:"), !imageName.hasPrefix("/dev/") else { return nil }
        // "nbd://host/x", "rbd:pool/x": a protocol comes before the first slash.
        if let colon = imageName.firstIndex(of: ":"), !imageName[..<colon].contains("/") { return nil }
        return imageName
    }
}

extension DiskCapture {
    /// The disks that the guest can write to, in the order in which QEMU lists them. Drives without a medium and read-only ones are
    /// not among them. Changes nothing.
    /// - Throws: `.unsupported` when a disk is encrypted or shared with another machine; `.busy` when a job of QEMU works on one, or
    ///   an earlier capture has left its overlay; `.protocolViolation`; what `execute` throws.
    public static func writableDisks(of qmp: QMPClient) throws(EngineError) -> [WritableDisk] {
        var disks: [WritableDisk] = []
        for drive in try BlockLayer(qmp).drives() {
            guard let medium = drive["inserted"], medium["ro"]?.bool == false else { continue }
            disks.append(try disk(drive, medium, qmp))
        }
        for (index, disk) in disks.enumerated() where disks[..<index].contains(where: { $0.name == disk.name }) {
            throw EngineError(
                .unsupported, "two of the machine's disks have the same name", remedy: "Give the devices ids of their own.",
                place: disk.name)
        }
        return disks
    }

    private static func disk(_ drive: JSONValue, _ medium: JSONValue, _ qmp: QMPClient) throws(EngineError) -> WritableDisk {
        guard let node = medium["node-name"]?.string, let driver = medium["drv"]?.string, let image = medium["image"],
            let length = image["virtual-size"]?.integer, length > 0
        else { throw BlockLayer.wrongAnswer("query-block", "a medium without a node name, driver or size") }
        let deviceID = drive["device"]?.string ?? ""
        let device = drive["qdev"]?.string ?? ""
        let disk = WritableDisk(
            name: name(device: device, drive: deviceID, node: node), deviceID: deviceID.isEmpty ? nil : deviceID, nodeName: node,
            byteLength: ByteCount(UInt64(length)), imageFormat: driver, imageName: image["filename"]?.string ?? "")
        if node.hasPrefix(CaptureNames.prefix) { throw unfinished(disk.name) }
        if ["mirror_top", "commit_top", "backup-top", "copy-before-write", "preallocate"].contains(driver) {
            throw EngineError(
                .busy, "QEMU has a job at work on this disk", remedy: "Try again when it has ended (QMP: query-jobs).", place: disk.name)
        }
        if medium["encrypted"]?.bool == true || image["encrypted"]?.bool == true || driver == "luks" {
            throw EngineError(
                .unsupported, "the disk is encrypted; its checkpoint would not be",
                remedy: "Detach it, or encrypt within the guest.", place: disk.name)
        }
        if try isShared(device, qmp) {
            throw EngineError(
                .unsupported, "the disk is shared with another machine (share-rw=on), which could write to it at any time",
                remedy: "Detach it.", place: disk.name)
        }
        return disk
    }

    /// The device's id, from a path such as "/machine/peripheral/disk0/virtio-backend", which QEMU gives for devices within devices.
    private static func name(device: String, drive: String, node: String) -> String {
        let parts = device.split(separator: "/")
        if parts.count >= 3, parts[1] == "peripheral" { return String(parts[2]) }
        if !device.isEmpty, !device.hasPrefix("/") { return device }
        if !drive.isEmpty { return drive }
        // Names that QEMU makes up are different at each start: the device's place in the machine is not.
        if node.hasPrefix("#"), !device.isEmpty { return parts.dropFirst().joined(separator: "-") }
        return node
    }

    private static func isShared(_ device: String, _ qmp: QMPClient) throws(EngineError) -> Bool {
        guard !device.isEmpty else { return false }
        let path = device.hasPrefix("/") ? device : "/machine/peripheral/" + device
        do throws(EngineError) {
            return try qmp.execute("qom-get", ["path": .string(path), "property": "share-rw"]).bool == true
        } catch {
            // A device that knows no sharing.
            if error.code == .refused { return false }
            throw error
        }
    }

    static func unfinished(_ place: String) -> EngineError {
        EngineError(
            .busy, "another checkpoint of this machine is under way, or was ended before it had put the disks back",
            remedy: "Wait for it; if there is none, run `ckstore vm rescue`.", place: place)
    }
}
