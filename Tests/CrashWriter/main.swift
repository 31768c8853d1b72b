// Saves in a loop until it is killed: the program that the kill tests start over and over.
//
// Invariant: a line is written, whole, before something is begun and after it is done, so that whoever reads the
// lines of a killed writer knows what must and what may be there.

import CheckpointStore
import Foundation
import Media
import StoreTesting
import Units

/// Says something at once and in one piece.
func say(_ text: String) {
    let line = Array((text + "\n").utf8)
    guard unsafe write(1, line, line.count) == line.count else { exit(3) }
}

/// Saves and deletes checkpoints called `prefix` and a number.
private func run(_ path: String, prefix: String) throws {
    let store = try CheckpointStore.open(try openMedium(try Locator("file:" + path), access: .readWrite))
    var serials = try store.snapshot().names().filter { $0.hasPrefix(prefix) }.compactMap { Int($0.dropFirst(prefix.count)) }
        .sorted()
    while true {
        let serial = (serials.last ?? 0) + 1
        let name = "\(prefix)\(serial)"
        let writer = try store.begin(name, parent: serials.last.map { "\(prefix)\($0)" }, options: WriterOptions(parallelism: 1))
        let content = KilledWriter.content(name)
        try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(content.count)).write(content)
        say("saving \(name)")
        try writer.commit()
        say("saved \(name)")
        serials.append(serial)
        guard serials.count > 5 else { continue }
        let doomed = "\(prefix)\(serials.removeFirst())"
        say("deleting \(doomed)")
        try store.delete([doomed])
        say("deleted \(doomed)")
    }
}

/// Compacts all the time, a little at a time.
private func compact(_ path: String) throws {
    let store = try CheckpointStore.open(try openMedium(try Locator("file:" + path), access: .readWrite))
    let options = CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, batchBytes: .kibibytes(256))
    while true {
        say("compacting store")
        let report = try store.compact(options)
        if let obstacle = report.obstacle, ![.noSpace, .busy].contains(obstacle.code) { throw obstacle }
        if let damage = report.damaged.first { throw damage }
    }
}

guard CommandLine.arguments.count == 3 || CommandLine.arguments.count == 4 else { exit(2) }
do {
    let (path, prefix) = (CommandLine.arguments[1], CommandLine.arguments[2])
    let seed = CommandLine.arguments.count == 4 ? UInt64(CommandLine.arguments[3]) : nil
    if prefix.hasPrefix(KilledWriter.mixer) {
        var mixer = try Mixer(path, prefix: String(prefix.dropFirst(KilledWriter.mixer.count)), seed: seed ?? .random(in: 0 ... .max))
        try mixer.run()
    }
    if prefix == KilledWriter.compactor { try compact(path) } else { try run(path, prefix: prefix) }
} catch {
    say("failed \(error)")
    exit(1)
}
