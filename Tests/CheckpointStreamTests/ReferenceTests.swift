// Names that move, on their way between stores.

import CheckpointStore
import CheckpointStream
import FaultHarness
import StoreFormat
import StoreTesting
import Synchronization
import Testing
import Units

private let page = [UInt8](repeating: 1, count: pageSize)

/// A line of checkpoints, each with another page.
private func makeLine(_ scene: Scene, _ names: String..., from parent: String? = nil) throws {
    var parent = parent
    for (index, name) in names.enumerated() {
        try scene.save(name, parent: parent, ["ram": (.memory, [UInt8](repeating: UInt8(index + 1), count: pageSize))])
        parent = name
    }
}

private func outcomes(_ adoptions: [ReferenceAdoption]) -> [String: ReferenceAdoption.Outcome] {
    Dictionary(uniqueKeysWithValues: adoptions.map { ($0.reference.name, $0.outcome) })
}

@Suite struct ReferenceTests {
    @Test func `names come with their checkpoints, but for latest, and move when the sender has moved them`() async throws {
        try await onPlainThread {
            let (source, target) = (try Scene(), try Scene())
            try makeLine(source, "a", "b", "c")
            try source.store.setReference("stable", to: "a")
            let report = try target.receive(try source.stream([("a", nil)]))
            #expect(outcomes(report.references) == ["stable": .added])
            #expect(try report.references.map(\.reference.checkpoint) == [source.info("a").id])
            #expect(try target.references() == ["stable": "a"])
            try source.store.setReference("stable", to: "c")
            try source.store.setReference("e\u{301}", to: "b")
            try source.store.setReference("\u{e9}", to: "c")
            let moved = try target.receive(try source.stream([("b", "a"), ("c", "b")]))
            #expect(moved.references.map(\.outcome) == [.added, .moved(from: try source.info("a").id), .added])
            let names = try target.store.snapshot().references().map { Array($0.name.utf8) }
            #expect(try names == source.store.snapshot().references().map { Array($0.name.utf8) } && names.count == 4)
            #expect(try target.store.snapshot().checkpoint(named: Reference.latest).name == "c")
            try target.requireSound()
            // What is there already may have got names since.
            try source.store.setReference("late", to: "b")
            let late = try target.receive(try source.stream([("b", "a")]), ReceiveOptions(skipsPresent: true, parallelism: 1))
            #expect(late.skipped.count == 1 && outcomes(late.references)["late"] == .added)
            #expect(try target.references()["late"] == "b")
            let again = try target.store.snapshot().generation
            try target.receive(try source.stream([("b", "a")]), ReceiveOptions(skipsPresent: true, parallelism: 1))
            #expect(try target.store.snapshot().generation == again, "nothing has changed, nothing is committed")
        }
    }

    @Test func `neither side sends or sets names when it is not to`() async throws {
        try await onPlainThread {
            let source = try Scene()
            try makeLine(source, "a")
            try source.store.setReference("stable", to: "a")
            let target = try Scene()
            let deaf = try target.receive(try source.stream([("a", nil)]), ReceiveOptions(setsReferences: false, parallelism: 1))
            #expect(deaf.references == [] && deaf.received.count == 1)
            #expect(try target.references() == [:])
            let other = try Scene()
            let file = try NamelessFile()
            let options = SendOptions(parallelism: 1, sendsReferences: false)
            #expect(try source.store.snapshot().send([SendItem(try source.info("a"), base: nil)], to: file.descriptor, options: options).references == [])
            try other.receive(try file.bytes())
            #expect(try other.references() == [:])
        }
    }

    @Test func `a name is taken away from nothing that has to do with something else, and that is told`() async throws {
        try await onPlainThread {
            let (source, target) = (try Scene(), try Scene())
            try makeLine(source, "a", "b")
            for name in ["called", "own", "renamed", "stable"] { try source.store.setReference(name, to: "b") }
            try target.save("called", ["ram": (.memory, page)])
            try target.save("mine", ["ram": (.memory, page)])
            try target.store.setReference("own", to: "mine")
            try target.receive(try source.stream([("a", nil)]))
            let options = ReceiveOptions(name: "renamed", parallelism: 1)
            let report = try target.receive(try source.stream([("b", "a")]), options)
            let mine = try target.info("mine").id
            #expect(
                outcomes(report.references) == [
                    "called": .takenByCheckpoint, "own": .takenByReference(to: mine), "renamed": .takenByCheckpoint, "stable": .added,
                ])
            #expect(try target.references() == ["own": "mine", "stable": "renamed"])
            let conflicts = report.references.compactMap { $0.conflict(in: target.store) }
            let other = try Scene()
            try makeLine(other, "own")
            let error = try target.refusal(try other.stream([("own", nil)]))
            #expect(error?.code == .exists && error?.remedy.contains("ckstore name remove") == true, "a name that moves is no checkpoint's")
            #expect(conflicts.count == 3 && conflicts.allSatisfy { $0.code == .exists && $0.remedy.contains("ckstore name set") })
            try target.requireSound()
        }
    }

    @Test func `a name follows along the lineage even where the sender has deleted what it led to`() async throws {
        try await onPlainThread {
            let (source, target) = (try Scene(), try Scene())
            try makeLine(source, "a", "b", "c")
            try makeLine(source, "side", from: "a")
            try source.store.setReference("stable", to: "side")
            try target.receive(try source.stream([("a", nil), ("b", "a"), ("side", "a")]))
            try source.store.setReference("stable", to: "c")
            try source.delete(["side"])
            let report = try target.receive(try source.stream([("c", "b")]))
            #expect(report.references.map(\.outcome) == [.moved(from: try target.info("side").id)])
            #expect(try target.references() == ["stable": "c"])
        }
    }

    @Test func `sync has names follow, keeps what only the target has, and keeps at the source what names keep`() async throws {
        try await onPlainThread {
            let (source, target) = (try Scene(), try Scene())
            try makeLine(source, "a", "b", "c", "d")
            try target.save("mine", ["ram": (.memory, page)])
            try target.store.setReference("own", to: "mine")
            for (name, checkpoint) in [("old", "a"), ("own", "b"), ("stable", "b")] { try source.store.setReference(name, to: checkpoint) }
            let events = Mutex<[String: Int]>([:])
            let options = SyncOptions(
                parallelism: 1,
                event: { event in
                    if case .named(let adoption) = event { events.withLock { $0[adoption.reference.name, default: 0] += 1 } }
                })
            let first = try source.store.copyCheckpoints(to: target.store, options: options)
            let mine = try target.info("mine").id
            #expect(outcomes(first.references) == ["old": .added, "own": .takenByReference(to: mine), "stable": .added])
            #expect(events.withLock { $0 } == ["old": 1, "own": 1, "stable": 1])
            #expect(try target.references() == ["old": "a", "own": "mine", "stable": "b"])
            // Nothing is copied, but a name has moved; one is gone at the source.
            try source.store.setReference("stable", to: "d")
            try source.store.removeReference("old")
            try target.store.setReference("kept", to: "b")
            let second = try source.store.copyCheckpoints(to: target.store, options: options)
            #expect(second.copied.isEmpty)
            #expect(try outcomes(second.references)["stable"] == .moved(from: source.info("b").id))
            #expect(try target.references() == ["kept": "b", "old": "a", "own": "mine", "stable": "d"])
            let generation = try target.store.snapshot().generation
            _ = try source.store.copyCheckpoints(to: target.store, options: options)
            #expect(try target.store.snapshot().generation == generation, "nothing has changed, nothing is committed")
            // A drained source keeps what its names lead to, and the target's names stay when theirs go.
            let drained = try source.store.copyCheckpoints(to: target.store, options: SyncOptions(keptAtSource: 0, parallelism: 1))
            #expect(drained.deleted.map(\.name) == ["a", "c"])
            #expect(try source.store.snapshot().names() == ["b", "d"])
            #expect(try target.references() == ["kept": "b", "old": "a", "own": "mine", "stable": "d"])
            let without = try Scene()
            let nameless = try source.store.copyCheckpoints(to: without.store, options: SyncOptions(setsReferences: false, parallelism: 1))
            #expect(nameless.references == [] && nameless.copied.count == 2)
            #expect(try without.references() == [:])
            try target.requireSound()
        }
    }

    @Test func `more names than a stream can have are refused before anything is sent`() async throws {
        try await onPlainThread {
            let source = try Scene()
            try makeLine(source, "a")
            for number in 0..<260 { try source.store.setReference(String(repeating: "n", count: 250) + "\(number)", to: "a") }
            let file = try NamelessFile()
            let items = [SendItem(try source.info("a"), base: nil)]
            let error = #expect(throws: StoreError.self) { try source.store.snapshot().send(items, to: file.descriptor) }
            #expect(error?.code == .invalidInput && error?.remedy.contains("--no-names") == true)
            #expect(try file.bytes().isEmpty)
            // Just as many as there can be.
            for number in 0..<260 where number >= 256 { try source.store.removeReference(String(repeating: "n", count: 250) + "\(number)") }
            let target = try Scene()
            try target.receive(try source.stream(items))
            #expect(try target.references().count == 256)
        }
    }
}
