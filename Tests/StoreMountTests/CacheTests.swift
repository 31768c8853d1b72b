// The cache that all open files share, against a model; and inode numbers.

import CheckpointStore
import FaultHarness
import Synchronization
import Testing
import Units

@testable import StoreMount

@Suite struct CacheTests {
    @Test func `the cache keeps what was used last, and never more than its capacity`() throws {
        var random = SeededGenerator(seed: 8)
        let cache = SharedCache<Int, Int>(capacity: ByteCount(100))
        // The newest last.
        var model: [(key: Int, value: Int, cost: Int)] = []
        for step in 0..<20_000 {
            let key = random.below(40)
            if random.chance(1, in: 30) {
                cache.remove(key)
                model.removeAll { $0.key == key }
                continue
            }
            let cost = 1 + random.below(30)
            var isMade = false
            let value = try cache.value(key) { () throws(StoreError) in
                isMade = true
                return (step, ByteCount(cost))
            }
            if let place = model.firstIndex(where: { $0.key == key }) {
                let known = model.remove(at: place)
                try #require(!isMade && value == known.value)
                model.append(known)
            } else {
                try #require(isMade && value == step)
                while model.reduce(0, { $0 + $1.cost }) + cost > 100 { model.removeFirst() }
                model.append((key, step, cost))
            }
            try #require(cache.cost == ByteCount(model.reduce(0) { $0 + $1.cost }))
            try #require((0..<40).allSatisfy { key in cache.contains(key) == model.contains { $0.key == key } })
        }
        let large = try cache.value(99) { () throws(StoreError) in (1, ByteCount(101)) }
        #expect(large == 1 && !cache.contains(99), "what is larger than all of it is not kept")
    }

    @Test func `a value that many want is made once, and a failure is nobody else's`() async throws {
        try await onPlainThread {
            let cache = SharedCache<Int, Int>(capacity: ByteCount(1000))
            let made = Atomic(0)
            let failed = Atomic(0)
            PlainThreads.run(8) { _ in
                for key in 0..<200 {
                    do throws(StoreError) {
                        let value = try cache.value(key) { () throws(StoreError) in
                            // The first attempt at each tenth value fails.
                            if key % 10 == 0, failed.load(ordering: .relaxed) <= key / 10 {
                                failed.add(1, ordering: .relaxed)
                                throw StoreError(.corrupt, "once")
                            }
                            made.add(1, ordering: .relaxed)
                            return (key * 2, ByteCount(1))
                        }
                        precondition(value == key * 2)
                    } catch { precondition(error.code == .corrupt) }
                }
            }
            for key in 0..<200 {
                let value = try cache.value(key) { () throws(StoreError) in
                    made.add(1, ordering: .relaxed)
                    return (key * 2, ByteCount(1))
                }
                #expect(value == key * 2)
            }
            #expect(made.load(ordering: .relaxed) == 200)
        }
    }

    @Test func `inode numbers say what they stand for`() {
        let some = [CheckpointNumber(UInt64(0)), CheckpointNumber(UInt64(1)), CheckpointNumber(UInt64(1) << 40)]
        var all: [Inode] = [.root, .reference(0), .reference(77)]
        for number in some { all += [.folder(number), .description(number), .region(number, 0), .region(number, 4095)] }
        #expect(Set(all.map(\.number)).count == all.count)
        for inode in all { #expect(Inode(inode.number) == inode) }
        #expect(Inode(0) == nil && Inode(2) == nil)
    }
}
