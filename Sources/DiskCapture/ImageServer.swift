// Serving the images below overlays for reading: by QEMU itself, which knows the bitmaps, or by qemu-nbd when QEMU's only server
// is in use by somebody else.
//
// Invariant: nothing that is served can be written to.

import CLinux
import CheckpointCore
import QMP

/// Where an image can be read.
struct ImageAddress: Sendable {
    /// In this process's view.
    var socket: String
    var export: String
    /// The bitmap of what was written since the parent; nil: not known.
    var bitmap: String?
}

/// Serves images until it is stopped. Used by one thread.
final class ImageServer {
    private let block: BlockLayer
    private let files: MachineFiles
    private let folder: String
    /// False: somebody else uses QEMU's server.
    private let isQEMU: Bool
    private var exports: [String] = []
    private var children: [(child: ChildProcess, socket: String)] = []

    init(block: BlockLayer, files: MachineFiles, folder: String) throws(EngineError) {
        self.block = block
        self.files = files
        self.folder = folder
        do throws(EngineError) {
            try block.qmp.execute(
                "nbd-server-start",
                ["addr": ["type": "unix", "data": ["path": .string(folder + "/nbd")]], "max-connections": 0])
            isQEMU = true
        } catch {
            guard error.code == .refused, error.reason.contains("already running") else { throw error }
            isQEMU = false
        }
    }

    func serve(_ captured: CapturedDisk) throws(EngineError) -> ImageAddress {
        let name = captured.names.overlay
        guard isQEMU else { return try serveByChild(captured, as: name) }
        try block.qmp.execute(
            "block-export-add",
            [
                "type": "nbd", "id": .string(name), "name": .string(name), "node-name": .string(captured.disk.nodeName),
                "writable": false, "bitmaps": .array(captured.parentBitmap.map { [.string($0)] } ?? []),
            ])
        exports.append(name)
        return ImageAddress(socket: files.seen(folder + "/nbd"), export: name, bitmap: captured.parentBitmap)
    }

    private func serveByChild(_ captured: CapturedDisk, as name: String) throws(EngineError) -> ImageAddress {
        guard let image = captured.disk.imagePath else {
            throw EngineError(
                .busy, "QEMU's NBD server is in use, and the disk's image can't be read without it",
                remedy: "Stop that server (QMP: nbd-server-stop), then take the checkpoint again.", place: captured.disk.name)
        }
        let socket = files.seen(folder + "/\(children.count)")
        let child = try ChildProcess.spawn(
            executable: "qemu-nbd",
            arguments: [
                "--read-only", "--persistent", "--shared=0", "--format=\(captured.disk.imageFormat)", "--socket=\(socket)",
                "--export-name=\(name)", files.seen(try files.absolute(image)),
            ], diesWithParent: true)
        children.append((child, socket))
        let deadline = Instant.now + 10_000
        while true {
            let connection = unsafe ck_connect_local(socket)
            if connection >= 0 {
                ck_close(connection)
                return ImageAddress(socket: socket, export: name, bitmap: nil)
            }
            if let status = try child.wait(timeoutMilliseconds: 2) {
                throw EngineError(.ioFailed, "qemu-nbd can't open the image (\(status))", remedy: "Look at its messages.", place: image)
            }
            if Instant.now > deadline { throw EngineError(.timeout, "qemu-nbd does not answer", remedy: "Try again.", place: image) }
        }
    }

    /// Ends everything; an error is what QEMU says.
    func finish() throws(EngineError) {
        stop()
        for export in exports { try block.deleteExport(export) }
        exports = []
        if isQEMU, files.isListening(at: folder + "/nbd") { try block.qmp.execute("nbd-server-stop") }
    }

    /// Ends what this process has started. What QEMU serves is ended by `finish`, or by the clean-up.
    func stop() {
        for (child, socket) in children {
            // Nobody else reaps this child, and it has this process's user: neither call can fail.
            try? child.kill()
            _ = try? child.wait(timeoutMilliseconds: nil)
            unsafe ck_remove(socket)
        }
        children = []
    }
}
