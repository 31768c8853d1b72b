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

    @Test func `what has got the name of one that is let go stays at the source, and cancelling ends letting go`() async throws {
        try await onPlainThread {
            let page = [UInt8](repeating: 1, count: pageSize)
            let (source, target) = (try Scene(), try Scene())
            for name in ["a", "b", "c", "d"] { try source.save(name, ["ram": (.memory, page)]) }
            let store = source.store
            let failure = Mutex<(any Error)?>(nil)
            let cancellation = StreamCancellation()
            let replacing = SyncOptions(
                keptAtSource: 1,
                event: { event in
                    guard case .deletedAtSource(let info) = event else { return }
                    do {
                        if info.name == "a" {
                            try store.delete(["b"])
                            try store.begin("b").commit()
                        } else {
                            cancellation.cancel()
                        }
                    } catch { failure.withLock { $0 = error } }
                }, cancellation: cancellation)
            let report = try source.store.copyCheckpoints(to: target.store, options: replacing)
            #expect(report.deleted.map(\.name) == ["a", "c"] && failure.withLock { $0 } == nil)
            #expect(try source.store.snapshot().names() == ["b", "d"])
            try source.store.delete(["b"])
            try source.save("e", ["ram": (.memory, page)])
            let error = #expect(throws: StoreError.self) {
                try source.store.copyCheckpoints(to: target.store, options: SyncOptions(keptAtSource: 0, cancellation: cancellation))
            }
            #expect(error?.code == .cancelled)
            #expect(try source.store.snapshot().names() == ["d", "e"])
        }
    }

    @Test func `what the target has deleted and still joins branches by is refused at once, and passed by`() async throws {
        try await onPlainThread {
            let source = try Scene()
            var random = SeededGenerator(seed: 33)
            try source.save("a", ["ram": (.memory, (0..<600).flatMap { _ in makePage(&random) })])
            for name in ["b", "c"] { try source.save(name, parent: "a", ["ram": (.memory, makePage(&random))]) }
            let target = try Scene()
            #expect(try source.store.copyCheckpoints(to: target.store).copied.count == 3)
            try target.store.delete(["a"])
            let stream = try source.stream([("a", nil)])
            // The frame with its pages has not come yet.
            for length in [1000, stream.count] { #expect(try target.refusal(stream[..<length])?.code == .exists) }
            try source.save("d", parent: "a", ["ram": (.memory, makePage(&random))])
            for copied in [["d"], []] {
                let report = try source.store.copyCheckpoints(to: target.store)
                #expect(report.copied.map(\.name) == copied && report.passedBy.map(\.name) == ["a"])
            }
            for name in ["b", "c", "d"] { try target.requireSame(name, as: source) }
            try target.requireSound()
            // Its branches gone, it can come.
            try target.store.delete(["b", "c", "d"])
            #expect(try source.store.copyCheckpoints(to: target.store).copied.count == 4)
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
