// QEMU's block layer as its monitor shows it: nodes, jobs, exports, bitmaps.
//
// Invariant: nothing is remembered. Every question is put to QEMU, so that the answers are right in any process at any time.

import CheckpointCore
import QMP
import Units

/// Questions and waits that captures and clean-ups share. Thread-safe.
struct BlockLayer: Sendable {
    let qmp: QMPClient

    init(_ qmp: QMPClient) { self.qmp = qmp }

    struct Bitmap {
        var name: String
        /// It counts every write, nobody uses it, and nothing has put it out of step.
        var isValid: Bool
        var isBusy: Bool
    }

    struct Node {
        var name: String
        var isReadOnly: Bool
        var bitmaps: [Bitmap]
    }

    struct Job {
        var id: String
        /// "running", "ready", "concluded" …
        var status: String
        /// Why it failed, if it has.
        var error: String?
    }

    static func wrongAnswer(_ command: String, _ what: String) -> EngineError {
        EngineError(.protocolViolation, "the answer is not understood: \(what)", place: command)
    }

    /// The drives of the machine, as `query-block` lists them.
    func drives() throws(EngineError) -> [JSONValue] {
        guard let drives = try qmp.execute("query-block").array else { throw Self.wrongAnswer("query-block", "no list") }
        return drives
    }

    func nodes() throws(EngineError) -> [Node] {
        // Not the flat form, which says of every node that it has nothing below it.
        guard let list = try qmp.execute("query-named-block-nodes", ["flat": false]).array else {
            throw Self.wrongAnswer("query-named-block-nodes", "no list")
        }
        return try list.map { (node) throws(EngineError) in
            guard let name = node["node-name"]?.string, let isReadOnly = node["ro"]?.bool else {
                throw Self.wrongAnswer("query-named-block-nodes", "a node without its name")
            }
            let bitmaps = (node["dirty-bitmaps"]?.array ?? []).compactMap { bitmap in
                bitmap["name"]?.string.map { name in
                    let busy = bitmap["busy"]?.bool == true
                    let valid = bitmap["recording"]?.bool == true && bitmap["inconsistent"]?.bool != true && !busy
                    return Bitmap(name: name, isValid: valid, isBusy: busy)
                }
            }
            return Node(name: name, isReadOnly: isReadOnly, bitmaps: bitmaps)
        }
    }

    /// Which nodes there are, and which of them are used by somebody who is not part of a capture: a device, another node.
    func graph() throws(EngineError) -> (nodes: Set<String>, used: Set<String>) {
        let graph = try qmp.execute("x-debug-query-block-graph")
        guard let nodes = graph["nodes"]?.array, let edges = graph["edges"]?.array else {
            throw Self.wrongAnswer("x-debug-query-block-graph", "no nodes or edges")
        }
        var names: [Int64: String] = [:]
        for node in nodes { if let id = node["id"]?.integer { names[id] = node["name"]?.string ?? "" } }
        var used: Set<String> = []
        for edge in edges {
            guard let parent = edge["parent"]?.integer.flatMap({ names[$0] }), let child = edge["child"]?.integer.flatMap({ names[$0] })
            else { throw Self.wrongAnswer("x-debug-query-block-graph", "an edge without ends") }
            // Exports and jobs' targets have no name: they are nobody's disk.
            if !parent.isEmpty, !parent.hasPrefix(CaptureNames.prefix) { used.insert(child) }
        }
        return (Set(nodes.filter { $0["type"]?.string == "block-driver" }.compactMap { $0["name"]?.string }), used)
    }

    func deleteNode(_ name: String) throws(EngineError) { try qmp.execute("blockdev-del", ["node-name": .string(name)]) }

    func jobs(_ scope: String) throws(EngineError) -> [Job] {
        guard let list = try qmp.execute("query-jobs").array else { throw Self.wrongAnswer("query-jobs", "no list") }
        return list.compactMap { job in
            guard let id = job["id"]?.string, id.hasPrefix(scope), let status = job["status"]?.string else { return nil }
            return Job(id: id, status: status, error: job["error"]?.string)
        }
    }

    /// The job as it is once it has one of `statuses` or has ended; nil when that takes longer than the time allowed.
    /// - Throws: `.protocolViolation` when there is no such job any more: somebody else has dismissed it.
    func wait(for id: String, statuses: Set<String>, milliseconds: Int) throws(EngineError) -> Job? {
        let deadline = Instant.now + milliseconds
        while true {
            let seen = qmp.lastEventSequence
            guard let job = try jobs(id).first(where: { $0.id == id }) else {
                throw EngineError(.protocolViolation, "QEMU's job has gone", remedy: "Don't touch jobs of ckstore.", place: id)
            }
            if statuses.contains(job.status) || job.status == "concluded" { return job }
            let left = deadline - Instant.now
            if left <= 0 { return nil }
            try pause(eventsAfter: seen, milliseconds: min(left, 500)) { event in
                event.name == "JOB_STATUS_CHANGE" && event.data["id"]?.string == id
            }
        }
    }

    /// Waits for an event, or until the time is over, whichever comes first: who waits looks at the state itself again.
    private func pause(
        eventsAfter sequence: Int, milliseconds: Int, where matches: (QMPEvent) -> Bool
    ) throws(EngineError) {
        do throws(EngineError) {
            _ = try qmp.waitForEvent(after: sequence, timeoutMilliseconds: milliseconds, where: matches)
        } catch { if error.code != .timeout { throw error } }
    }

    func dismiss(_ job: String) throws(EngineError) { try qmp.execute("job-dismiss", ["id": .string(job)]) }

    func exports(_ scope: String) throws(EngineError) -> [String] {
        let list = try qmp.execute("query-block-exports").array ?? []
        return list.compactMap { $0["id"]?.string }.filter { $0.hasPrefix(scope) }
    }

    /// Ends an export and waits until it lets go of its node.
    func deleteExport(_ id: String) throws(EngineError) {
        let seen = qmp.lastEventSequence
        do throws(EngineError) {
            try qmp.execute("block-export-del", ["id": .string(id), "mode": "hard"])
        } catch {
            // Ending already.
            if error.code != .refused { throw error }
        }
        var sequence = seen
        for _ in 0..<20 where try exports(id).contains(id) {
            try pause(eventsAfter: sequence, milliseconds: 500) { $0.name == "BLOCK_EXPORT_DELETED" && $0.data["id"]?.string == id }
            sequence = qmp.lastEventSequence
        }
        if try exports(id).contains(id) {
            throw EngineError(.timeout, "QEMU does not end the export", remedy: "Try again.", place: id)
        }
    }

    func removeBitmap(_ name: String, from node: String) throws(EngineError) {
        try qmp.execute("block-dirty-bitmap-remove", ["node": .string(node), "name": .string(name)])
    }
}
