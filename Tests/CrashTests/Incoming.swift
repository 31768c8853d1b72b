// Checkpoints that come from another store: what the receiving operations of the programme receive.
//
// Invariants:
// - A seed decides what comes, but for the numbers that receiving draws for streams and parts.
// - Two regions, so that there is something to make durable before all has come.

import CheckpointStore
import CheckpointStream
import FaultHarness
import Media
import StoreTesting
import Units

/// A store with two checkpoints, the second made over the first.
struct Incoming: Sendable {
    let first: String
    let second: String
    let contents: [(name: String, regions: ModelCheckpoint)]
    private let device: SimulatedDevice
    private let stream: [UInt8]

    init(first: String, second: String, seed: UInt64) {
        (self.first, self.second) = (first, second)
        do { (device, contents, stream) = try Incoming.made(first, second, seed) } catch { preconditionFailure("nothing to receive: \(error)") }
    }

    private static func made(
        _ first: String, _ second: String, _ seed: UInt64
    ) throws -> (SimulatedDevice, [(name: String, regions: ModelCheckpoint)], [UInt8]) {
        let device = SimulatedDevice(size: .mebibytes(2))
        let store = try CheckpointStore.create(
            on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: seed))
        defer { store.close() }
        var random = SeededGenerator(seed: seed)
        var ram = (0..<Step.fullPages).flatMap { _ in makePage(&random) }
        var contents: [(name: String, regions: ModelCheckpoint)] = []
        for name in [first, second] {
            let state = Array(makePage(&random)[..<1000])
            if name == second { ram.replaceSubrange(3 * pageSize..<5 * pageSize, with: makePage(&random) + makePage(&random)) }
            let labels = StoreModel.isKept(name) ? [StoreModel.keptLabel: "yes"] : [:]
            let writer = try store.begin(name, parent: name == first ? nil : first, options: WriterOptions(parallelism: 1, labels: labels))
            try writer.addRegion("ram", kind: .memory, byteLength: ByteCount(ram.count)).write(ram)
            try writer.addRegion("state", kind: .state, byteLength: ByteCount(state.count)).write(state)
            try writer.commit()
            contents.append((name, ["ram": ram, "state": state]))
        }
        let snapshot = try store.snapshot()
        let infos = (try snapshot.checkpoint(named: first), try snapshot.checkpoint(named: second))
        let stream = try Transfer.stream([SendItem(infos.0, base: nil), SendItem(infos.1, base: infos.0)], of: snapshot)
        return (device, contents, stream)
    }

    /// Receives both, in steps as small as they can be or in one each.
    func receive(into store: CheckpointStore, inSteps: Bool) throws {
        let options = ReceiveOptions(stepBytes: inSteps ? ByteCount(1) : .mebibytes(256), parallelism: 1)
        if let obstacle = try Transfer.receive(stream, into: store, options).obstacle { throw obstacle }
    }

    /// Receives the greater part of the stream, which is cut, and then the rest.
    func receiveCut(into store: CheckpointStore) throws {
        let cut = stream.count - 100
        guard try fails(with: .cutStream, { try Transfer.receive(stream.prefix(cut), into: store) }) else {
            throw Mismatch("a stream that was cut was received")
        }
        try receiveRest(into: store)
    }

    /// Receives what is not there, from where it has come to.
    func receiveRest(into store: CheckpointStore) throws {
        let source = try CheckpointStore.open(FaultMedium(device.fork()), environment: testEnvironment(seed: 1))
        defer { source.close() }
        let snapshot = try source.snapshot()
        for (name, regular) in [(first, nil), (second, first)] {
            let here = try store.snapshot()
            guard try !here.names().contains(name) else { continue }
            let part = try here.partialCheckpoints().first { $0.name == name }
            let item = SendItem(
                try snapshot.checkpoint(named: name), base: try regular.map { try snapshot.checkpoint(named: $0) }, start: part?.position ?? .start)
            if let obstacle = try Transfer.receive(try Transfer.stream([item], of: snapshot), into: store).obstacle { throw obstacle }
        }
    }

    /// Receives all of it once more, where all of it is: what a receiver has left that ended before its last deletion goes.
    func receiveAgain(into store: CheckpointStore) throws {
        let report = try Transfer.receive(stream, into: store, ReceiveOptions(skipsPresent: true, parallelism: 1))
        guard report.received.isEmpty, report.skipped.count == contents.count else { throw Mismatch("what was there was received again") }
    }
}
