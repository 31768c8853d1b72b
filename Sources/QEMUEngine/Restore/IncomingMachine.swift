// What a QEMU that waits to be loaded says of itself: the machine that its command line makes.
//
// Invariant: nothing here changes the machine.

import CheckpointCore
import QMP
import Units

/// A machine that is about to be loaded, or that is being loaded.
struct IncomingMachine: Sendable {
    /// One block of its memory.
    struct Block: Sendable, Equatable {
        var name: String
        /// The size of the host's pages behind it.
        var pageBytes: UInt64
        /// Its length, and the length that it may grow to.
        var usedBytes: UInt64
        var totalBytes: UInt64
    }

    /// The versioned name.
    var machineType: String
    var virtualCPUs: Int
    var blocks: [Block]
    /// The lengths of the images of all block devices.
    var diskBytes: [UInt64]
    /// Blocks that are zero where nothing was put: fresh anonymous memory, and no file that somebody wrote to before.
    var freshBlocks: Set<String> = []

    /// Asks `qmp`.
    /// - Throws: `.unsupported` when this QEMU says it in another way than expected; what QMP throws.
    init(_ qmp: QMPClient) throws(EngineError) {
        let type = try qmp.execute("qom-get", ["path": "/machine", "property": "type"]).string ?? ""
        let suffix = "-machine"
        machineType = type.hasSuffix(suffix) ? String(type.dropLast(suffix.count)) : type
        virtualCPUs = try qmp.execute("query-cpus-fast").array?.count ?? 0
        let table = try qmp.execute("human-monitor-command", ["command-line": "info ramblock"]).string ?? ""
        blocks = try Self.blocks(in: table)
        diskBytes = try qmp.execute("query-block").array?.compactMap {
            $0["inserted"]?["image"]?["virtual-size"]?.integer.map { UInt64(clamping: $0) }
        } ?? []
        for block in blocks where try Self.isFresh(block.name, qmp) { freshBlocks.insert(block.name) }
    }

    /// Blocks that no backend object makes (ROMs, video memory) hold what QEMU put there.
    private static func isFresh(_ block: String, _ qmp: QMPClient) throws(EngineError) -> Bool {
        do throws(EngineError) {
            let type = try qmp.execute("qom-get", ["path": .string("/objects/\(block)"), "property": "type"]).string
            return type == "memory-backend-ram" || type == "memory-backend-memfd"
        } catch {
            guard error.code == .refused else { throw error }
            return false
        }
    }

    /// The rows of `info ramblock`: name, page size, and three numbers, the name perhaps with blanks in it.
    static func blocks(in table: String) throws(EngineError) -> [Block] {
        var blocks: [Block] = []
        for line in table.split(whereSeparator: \.isNewline).dropFirst() {
            let words = line.split(separator: " ")
            guard words.count >= 6, let pages = UInt64(words[words.count - 5]), let unit = unit(words[words.count - 4]),
                let used = hexadecimal(words[words.count - 2]), let total = hexadecimal(words[words.count - 1])
            else { throw unreadable(line) }
            // What stands before the page size, which is set right.
            let name = words[0..<words.count - 5].joined(separator: " ")
            blocks.append(Block(name: name, pageBytes: pages * unit, usedBytes: used, totalBytes: total))
        }
        guard !blocks.isEmpty else { throw unreadable(table) }
        return blocks
    }

    private static func unreadable(_ text: some StringProtocol) -> EngineError {
        EngineError(
            .unsupported, "this QEMU lists its memory in a form that is not known: \(text.prefix(100))",
            remedy: "Use QEMU 7.2, or a newer ckstore.")
    }

    private static func unit(_ text: Substring) -> UInt64? {
        switch text {
        case "B": 1
        case "KiB": 1 << 10
        case "MiB": 1 << 20
        case "GiB": 1 << 30
        default: nil
        }
    }

    private static func hexadecimal(_ text: Substring) -> UInt64? {
        text.hasPrefix("0x") ? UInt64(text.dropFirst(2), radix: 16) : nil
    }
}
