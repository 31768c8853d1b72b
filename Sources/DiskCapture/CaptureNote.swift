// The note that a capture leaves in QEMU: what another process needs to know to undo it.
//
// Invariants:
// - The note is there before the first thing that it speaks of is made, and goes away after the last.
// - It is an inert object of QEMU's (an authorization rule that nothing refers to) with the note as its text: it lives and dies
//   with the machine, as the things do that it speaks of.

import CheckpointCore
import FoundationEssentials
import QMP
import StoreFormat

/// What a capture has made, or was about to make, outside QEMU's own lists.
struct CaptureNote: Codable, Sendable {
    struct Disk: Codable, Sendable {
        var overlayNode: String
        /// The overlay's file, by an absolute path as QEMU sees it.
        var overlayPath: String
        /// The node below the overlay, that the guest had before.
        var baseNode: String
        /// The bitmap that counts from this checkpoint; nil: there is none.
        var bitmap: String?

        var names: DiskNames { DiskNames(overlay: overlayNode) }
    }

    var disks: [Disk]
    /// A folder for sockets, by an absolute path as QEMU sees it.
    var folder: String
    /// The socket of QEMU's NBD server in that folder.
    var serverSocket: String { folder + "/nbd" }
    /// The socket of the write log.
    var logSocket: String { folder + "/log" }
}

extension BlockLayer {
    private static let objects = "/objects/"

    func leave(_ note: CaptureNote, as id: String) throws(EngineError) {
        let text: Data
        do { text = try JSONEncoder().encode(note) } catch { preconditionFailure("a note has nothing that JSON can't say") }
        try qmp.execute(
            "object-add",
            ["qom-type": "authz-simple", "id": .string(id), "identity": .string(String(decoding: text, as: UTF8.self))])
    }

    /// Leaves a mark, an object without content.
    func mark(_ id: String) throws(EngineError) {
        try qmp.execute("object-add", ["qom-type": "authz-simple", "id": .string(id), "identity": ""])
    }

    func unmark(_ id: String) throws(EngineError) { try qmp.execute("object-del", ["id": .string(id)]) }

    /// The ids of all objects of captures.
    func objects(_ scope: String) throws(EngineError) -> [String] {
        let list = try qmp.execute("qom-list", ["path": "/objects"]).array ?? []
        return list.compactMap { $0["name"]?.string }.filter { $0.hasPrefix(scope) }
    }

    /// The notes of captures within a scope, by their ids.
    func notes(_ scope: String) throws(EngineError) -> [(id: String, note: CaptureNote)] {
        var notes: [(id: String, note: CaptureNote)] = []
        for id in try objects(scope) where id.hasSuffix("-note") {
            let text = try qmp.execute("qom-get", ["path": .string(Self.objects + id), "property": "identity"]).string ?? ""
            guard let note = try? JSONDecoder().decode(CaptureNote.self, from: Data(text.utf8)) else {
                throw Self.wrongAnswer("qom-get", "the note \(id) can't be read")
            }
            notes.append((id, note))
        }
        return notes
    }
}
