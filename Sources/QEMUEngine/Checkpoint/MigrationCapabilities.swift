// Which capabilities QEMU's migration has on, and how they come back to what they were.

import CheckpointCore
import FoundationEssentials
import QMP

/// The capabilities of one QEMU's migration as they were found.
struct MigrationCapabilities: Codable, Sendable, Equatable {
    /// By QEMU's names.
    private(set) var states: [String: Bool]

    /// What QEMU refuses together with a background snapshot, and what makes no sense in a migration to memory.
    private static let unwanted = [
        "postcopy-ram", "dirty-bitmaps", "postcopy-blocktime", "late-block-activate", "return-path", "multifd",
        "pause-before-switchover", "auto-converge", "release-ram", "rdma-pin-all", "compress", "xbzrle", "x-colo",
        "validate-uuid", "zero-copy-send", "postcopy-preempt", "block",
    ]

    private static let ours = ["background-snapshot", "x-ignore-shared"]

    /// Asks `qmp`.
    init(of qmp: QMPClient) throws(EngineError) {
        var states: [String: Bool] = [:]
        for entry in try qmp.execute("query-migrate-capabilities").array ?? [] {
            if let name = entry["capability"]?.string, let state = entry["state"]?.bool { states[name] = state }
        }
        self.states = states
    }

    /// Turns `wanted` on and everything that does not go with it off.
    /// - Throws: `.unsupported` when this QEMU does not know one of them; `.refused` when it will not have it.
    func use(_ wanted: [String], in qmp: QMPClient) throws(EngineError) {
        for name in wanted where states[name] == nil {
            throw EngineError(
                .unsupported, "this QEMU (\(qmp.version)) has no migration capability \(name)",
                remedy: "QEMU 6.0 or newer is needed.")
        }
        var target = states.mapValues { _ in false }.filter { Self.unwanted.contains($0.key) || wanted.contains($0.key) }
        for name in Self.ours where states[name] != nil { target[name] = false }
        for name in wanted { target[name] = true }
        if states["events"] != nil { target["events"] = true }
        try set(target, in: qmp)
    }

    /// Makes them what they were. Harmless at any time when no migration is under way.
    func restore(in qmp: QMPClient) throws(EngineError) {
        let now = try MigrationCapabilities(of: qmp)
        try set(states.filter { now.states[$0.key] != $0.value }, in: qmp)
    }

    /// Turns off what a checkpoint turns on.
    static func turnOffOurs(in qmp: QMPClient) throws(EngineError) {
        let now = try MigrationCapabilities(of: qmp)
        try now.set(now.states.filter { ours.contains($0.key) && $0.value }.mapValues { _ in false }, in: qmp)
    }

    private func set(_ target: [String: Bool], in qmp: QMPClient) throws(EngineError) {
        guard !target.isEmpty else { return }
        // Those that go off come first: QEMU checks each against the ones before it.
        let order = target.sorted { ($0.value ? 1 : 0, $0.key) < ($1.value ? 1 : 0, $1.key) }
        let list = order.map { JSONValue.object(["capability": .string($0.key), "state": .bool($0.value)]) }
        try qmp.execute("migrate-set-capabilities", ["capabilities": .array(list)])
    }
}
