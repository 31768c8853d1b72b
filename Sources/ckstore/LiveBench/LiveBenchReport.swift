// What the bench of live memory prints: figures beside those of fork(), and targets.
//
// Invariant: a figure and what it is compared with are of the same run and the same bytes.

import Units

struct LiveBenchReport: Encodable {
    /// One line: a figure, the peer's, and whether the target is met.
    struct Row: Encodable {
        /// The kind of memory.
        var memory: String
        var name: String
        var value: Double
        var unit: String
        /// The same of fork(), or of what else it is compared with.
        var peer: Double?
        var peerName: String?
        var target: String?
        var isMet: Bool?
        var note: String?
    }

    var medium: String
    var memoryBytes: UInt64
    var source: String
    var rounds: Int
    var machine = BenchReport.Machine()
    /// What this kernel lacks.
    var limitations: [String] = []
    var rows: [Row] = []

    var text: String {
        let head = listing([
            ("medium", medium), ("memory", "\(readable(ByteCount(memoryBytes))) of each kind: \(source)"),
            ("machine", "\(machine.processor), \(machine.cores) cores, \(readable(ByteCount(machine.memoryBytes))), \(machine.kernel)"),
            ("figures", "medians of \(counted(rounds, "round"))"),
        ])
        var table = Table(columns: [
            ("MEMORY", .left), ("RESULT", .left), ("FIGURE", .right), ("PEER", .right), ("OF", .left), ("TARGET", .left), ("", .left),
        ])
        var last = ""
        for row in rows {
            table.rows.append([
                row.memory == last ? "" : row.memory, row.name, Self.figure(row.value, row.unit), row.peer.map { Self.figure($0, row.unit) } ?? "",
                row.peerName ?? "", row.target ?? "", row.isMet.map { $0 ? "met" : "NOT MET" } ?? row.note ?? "",
            ])
            last = row.memory
        }
        return head + limitations.map { "without: \($0)\n" }.joined() + "\n" + table.text
    }

    private static func figure(_ value: Double, _ unit: String) -> String {
        "\(decimals(value, value < 10 ? 2 : value < 100 ? 1 : 0)) \(unit)"
    }
}

/// The middle of some figures, and others by their share.
func quantile(_ values: [Double], _ share: Double = 0.5) -> Double {
    precondition(!values.isEmpty, "figures to choose from")
    let sorted = values.sorted()
    return sorted[min(sorted.count - 1, Int(Double(sorted.count) * share))]
}
