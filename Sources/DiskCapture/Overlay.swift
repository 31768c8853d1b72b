// Overlays: the files that take the guest's writes while its disk is being read.
//
// Invariants:
// - An overlay's file is there, durable by name and empty of content before QEMU hears of it. It says which image it belongs to,
//   so that `qemu-img commit` can finish what nobody else does.
// - Making overlays changes nothing for the guest. Only the switch does, in one transaction: all disks or none.
// - Between an overlay and its file stands a throttle node without limits, so that a guest that writes faster than a
//   commit can follow can be slowed down, with nothing to be put back afterwards.
// - Overlays ignore discards: the guest reads from its disk the same bytes with an overlay and after it.

import CheckpointCore
import QMP
import Units

/// One disk, and what its capture needs to know.
struct CapturedDisk: Sendable {
    let disk: WritableDisk
    let names: DiskNames
    let overlayPath: String
    /// The bitmap of what was written since the parent; nil: it is not known.
    var parentBitmap: String?
    /// The bitmap that will count from this checkpoint; nil: none is wanted.
    let newBitmap: String?

    var noted: CaptureNote.Disk {
        CaptureNote.Disk(
            overlayNode: names.overlay, overlayPath: overlayPath, baseNode: disk.nodeName,
            bitmap: newBitmap)
    }
}

extension BlockLayer {
    /// Makes the overlay's file and nodes, attached to nothing.
    func makeOverlay(of captured: CapturedDisk, files: MachineFiles) throws(EngineError) {
        let names = captured.names
        try files.create(captured.overlayPath)
        try qmp.execute("object-add", ["qom-type": "throttle-group", "id": .string(names.limits)])
        try qmp.execute(
            "blockdev-add",
            ["driver": "file", "filename": .string(captured.overlayPath), "node-name": .string(names.file)])
        try format(captured, files)
        try qmp.execute(
            "blockdev-add",
            [
                "driver": "qcow2", "node-name": .string(names.overlay), "backing": nil,
                "file": [
                    "driver": "throttle", "node-name": .string(names.throttle), "throttle-group": .string(names.limits),
                    "file": .string(names.file),
                ],
            ])
    }

    private func format(_ captured: CapturedDisk, _ files: MachineFiles) throws(EngineError) {
        let names = captured.names
        // Subclusters of 4 KiB: small writes copy nothing from the base, and committing back moves just what was written.
        var options: [String: JSONValue] = [
            "driver": "qcow2", "file": .string(names.file), "size": .integer(Int64(captured.disk.byteLength.rawValue)),
            "cluster-size": 131072, "extended-l2": true,
        ]
        if let path = captured.disk.imagePath {
            options["backing-file"] = .string(try files.absolute(path))
            options["backing-fmt"] = .string(captured.disk.imageFormat)
        }
        try qmp.execute("blockdev-create", ["job-id": .string(names.createJob), "options": .object(options)])
        guard let job = try wait(for: names.createJob, statuses: [], milliseconds: 30_000) else {
            throw EngineError(.timeout, "QEMU does not finish an empty overlay", remedy: "Look at its disk.", place: captured.overlayPath)
        }
        try dismiss(names.createJob)
        if let reason = job.error {
            throw EngineError(
                .ioFailed, "QEMU can't make an overlay: \(reason)", remedy: "Look for room and permissions there.",
                place: captured.overlayPath)
        }
    }

    /// Lets all disks continue in their overlays: all or nothing. Nothing else is in the transaction, since the guest may stand
    /// still meanwhile: bitmaps come later.
    func switchToOverlays(_ disks: [CapturedDisk]) throws(EngineError) {
        let actions = disks.map { captured -> JSONValue in
            [
                "type": "blockdev-snapshot",
                "data": ["node": .string(captured.disk.nodeName), "overlay": .string(captured.names.overlay)],
            ]
        }
        try qmp.execute("transaction", ["actions": .array(actions)])
    }

    /// Lets bitmaps count from the switch, as long as nothing has been written to the images since.
    func beginBitmaps(_ disks: [CapturedDisk]) throws(EngineError) {
        // A disk that somebody else has committed back, or whose device has gone, gets none: its next capture is a full one.
        let used = try graph().used
        let nodes = try nodes()
        for captured in disks where used.contains(captured.names.overlay) {
            let node = captured.disk.nodeName
            guard let bitmap = captured.newBitmap, try jobs(captured.names.commitJob).isEmpty,
                !nodes.contains(where: { $0.name == node && $0.bitmaps.contains { $0.name == bitmap } })
            else { continue }
            try qmp.execute(
                "block-dirty-bitmap-add",
                ["node": .string(node), "name": .string(bitmap), "granularity": .integer(Int64(pageSize)), "persistent": false])
        }
    }
}
