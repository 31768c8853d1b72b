// Stores that are brought up to one another.

import CheckpointStore
import CheckpointStream
import FaultHarness
import StoreFormat
import StoreTesting
import Synchronization
import Testing
import Units

@Suite struct SyncTests {
    @Test func `the target gets what it lacks, and only that`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(256))
            let target = try Scene(size: .mebibytes(256))
            var history = History(seed: seed)
            for round in 0..<4 {
                for _ in 0..<3 { try history.step(source) }
                let report = try source.store.copyCheckpoints(to: target.store, options: SyncOptions(stepBytes: .kibibytes(300), parallelism: 2))
                guard report.copied.count == 3 else { throw Mismatch("seed \(seed), round \(round): \(report.copied.count)") }
                for name in source.model.keys { try target.requireSame(name, as: source) }
            }
            #expect(try source.store.copyCheckpoints(to: target.store).copied.isEmpty)
            try target.store.requireEqual(source.model)
        }
    }

    @Test func `a fast store is drained into a lasting one`() async throws {
        let seed = testSeed()
        try await onPlainThread {
            let source = try Scene(size: .mebibytes(256))
            let target = try Scene(size: .mebibytes(256))
            var history = History(seed: seed)
            let events = Mutex<[String]>([])
            for _ in 0..<4 {
                for _ in 0..<2 { try history.step(source) }
                let names = try source.store.snapshot().checkpointsInSendingOrder().map(\.name)
                let options = SyncOptions(
                    keptAtSource: 1, parallelism: 1,
                    event: { event in
                        if case .deletedAtSource(let info) = event { events.withLock { $0.append(info.name) } }
                    })
                let report = try source.store.copyCheckpoints(to: target.store, options: options)
                guard report.deleted.map(\.name) == names.dropLast() else { throw Mismatch("seed \(seed): \(report.deleted.map(\.name))") }
                guard try source.store.snapshot().names() == names.suffix(1) else { throw Mismatch("seed \(seed)") }
                // What is gone at the source can't be a parent any more.
                let all = source.model
                source.model = all.filter { $0.key == names.last }
                for (name, regions) in all { target.model[name] = regions }
            }
            try target.store.requireEqual(target.model)
            #expect(events.withLock { $0.count } == 7)
        }
    }

    @Test func `what was interrupted is gone on from`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 31)
            try source.save("a", ["ram": (.memory, (0..<2600).flatMap { _ in makePage(&random) })])
            let target = try Scene()
            let cancellation = StreamCancellation()
            let interrupted = SyncOptions(
                stepBytes: .kibibytes(200), parallelism: 1, progress: { if $0 > .mebibytes(1) { cancellation.cancel() } },
                cancellation: cancellation)
            let error = #expect(throws: StoreError.self) { try source.store.copyCheckpoints(to: target.store, options: interrupted) }
            #expect(error?.code == .cancelled && error?.remedy.contains("--resume") == true)
            let part = try #require(try target.parts().first)
            let starts = Mutex<[StreamPosition]>([])
            let report = try source.store.copyCheckpoints(
                to: target.store,
                options: SyncOptions(event: { event in if case .began(let item) = event { starts.withLock { $0.append(item.start) } } }))
            #expect(report.copied.map(\.name) == ["a"] && starts.withLock { $0 } == [part.position])
            try target.requireSame("a", as: source)
            #expect(try target.store.snapshot().names() == ["a"])
        }
    }

    @Test func `a name that is taken ends it, and what was copied stays`() async throws {
        try await onPlainThread {
            let source = try Scene()
            try source.save("a", ["ram": (.memory, [UInt8](repeating: 1, count: pageSize))])
            try source.save("b", parent: "a", ["ram": (.memory, [UInt8](repeating: 2, count: pageSize))])
            let target = try Scene()
            try target.save("b", ["ram": (.memory, [UInt8](repeating: 3, count: pageSize))])
            #expect(throws: StoreError.self) { try source.store.copyCheckpoints(to: target.store) }
            try target.requireSame("a", as: source)
            #expect(try target.store.snapshot().names() == ["a", "b"])
        }
    }
}
