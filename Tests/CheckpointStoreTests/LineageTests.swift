// The lineage, names that move, what deleting costs, and stores with features that are not known.

@testable import CheckpointStore
import FaultHarness
import Media
import StoreFormat
import StoreTesting
import Testing
import Units

private func failure(_ body: () throws -> Void) -> StoreError? {
    do {
        try body()
        return nil
    } catch { return error as? StoreError }
}

/// Saves a small checkpoint with a page of its own.
@discardableResult
private func put(
    _ name: String, over parent: String? = nil, page: Int = 0, on store: CheckpointStore, pageCount: Int = 16, references: [String] = []
) throws -> CheckpointInfo {
    let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1, references: references))
    let bytes = (0..<pageSize / 8).flatMap { _ in writer.id.rawValue.littleEndianBytes }
    try writer.addRegion("ram", kind: .memory, byteLength: PageCount(pageCount).bytes).put(page: PageIndex(page), bytes)
    return try writer.commit()
}

private func makeStore(_ device: SimulatedDevice) throws -> CheckpointStore {
    try CheckpointStore.create(
        on: FaultMedium(device), options: CreateOptions(segmentSize: .kibibytes(128)), environment: testEnvironment(seed: 1))
}

private func requireExact(_ store: CheckpointStore) throws {
    let report = try store.verify(options: VerifyOptions(parallelism: 1))
    if let damage = report.damages.first { throw Mismatch("\(damage)") }
    guard report.lostPages == .zero, report.lostBytes == .zero else { throw Mismatch("\(report.lostPages) pages, \(report.lostBytes) bytes lost") }
}

@Suite struct LineageTests {
    @Test func `latest follows every commit, and goes back to the nearest ancestor that is left`() throws {
        let store = try makeStore(SimulatedDevice(size: .mebibytes(4)))
        func latest() throws -> String? { failureOrName { try store.snapshot().checkpoint(named: "latest").name } }
        func failureOrName(_ body: () throws -> String) -> String? { try? body() }
        #expect(try latest() == nil)
        try put("a", on: store)
        try put("b", over: "latest", on: store)
        try put("c", over: "b", on: store)
        try put("side", over: "a", on: store)
        #expect(try latest() == "side")
        try store.delete(["side"])
        #expect(try latest() == "a")
        try put("d", over: "c", on: store)
        try store.delete(["c", "b"])
        try store.delete(["latest"])
        #expect(try latest() == "a")
        try requireExact(store)
        try store.delete(["a"])
        #expect(try latest() == nil)
        #expect(try store.snapshot().references().isEmpty)
    }

    @Test func `a name that moves is set, kept, refused and removed`() throws {
        let store = try makeStore(SimulatedDevice(size: .mebibytes(4)))
        try put("a", on: store)
        try put("b", over: "a", on: store, references: ["stable"])
        #expect(try store.snapshot().reader(named: "stable").info.name == "b")
        #expect(failure { try store.delete(["a", "b"]) }?.code == .referenced)
        #expect(failure { try store.delete(["stable"]) }?.code == .referenced)
        #expect(try store.snapshot().names() == ["a", "b"], "nothing of a refused deletion is done")
        try store.setReference("stable", to: "a")
        try store.delete(["b"])
        #expect(failure { try put("stable", on: store) }?.code == .exists)
        #expect(failure { try put("latest", on: store) }?.code == .invalidInput)
        #expect(failure { try put("c", on: store, references: ["a"]) }?.code == .exists)
        #expect(failure { try put("c", on: store, references: ["c"]) }?.code == .exists)
        #expect(failure { try store.setReference("a", to: "a") }?.code == .exists)
        #expect(failure { try store.setReference("latest", to: "a") }?.code == .invalidInput)
        #expect(failure { try store.setReference("x/y", to: "a") }?.code == .invalidInput)
        #expect(failure { try store.setReference("new", to: "nowhere") }?.code == .notFound)
        #expect(failure { try store.removeReference("new") }?.code == .notFound)
        #expect(failure { try store.removeReference("latest") }?.code == .invalidInput)
        #expect(try store.snapshot().references().map(\.name) == ["latest", "stable"])
        try store.removeReference("stable")
        try put("stable", on: store)
        try requireExact(store)
    }

    @Test func `tombstones stay as long as they join branches`() throws {
        let store = try makeStore(SimulatedDevice(size: .mebibytes(4)))
        let root = try put("root", on: store).id
        let middle = try put("middle", over: "root", page: 1, on: store).id
        let left = try put("left", over: "middle", page: 2, on: store).id
        let right = try put("right", over: "middle", page: 3, on: store).id
        try store.delete(["middle"])
        #expect(try store.snapshot().lineage() == [
            root: LineageMember(parent: nil, isDeleted: false), middle: LineageMember(parent: root, isDeleted: true),
            left: LineageMember(parent: middle, isDeleted: false), right: LineageMember(parent: middle, isDeleted: false),
        ])
        try store.delete(["root"])
        #expect(try store.snapshot().lineage()[middle] == LineageMember(parent: nil, isDeleted: true))
        try store.delete(["left"])
        #expect(try store.snapshot().lineage() == [right: LineageMember(parent: nil, isDeleted: false)])
        #expect(try store.snapshot().checkpoint(named: "right").parent == middle, "a record is never changed")
        try requireExact(store)
    }

    @Test func `deleting costs what dies, however many checkpoints and branches there are`() async throws {
        try await onPlainThread {
            let store = try makeStore(SimulatedDevice(size: .mebibytes(16)))
            // Two levels of inner nodes, the trunk long, and many branches from one place.
            let pages = 200 * pagesPerSpan
            try put("0", on: store, pageCount: pages)
            for number in 1..<60 { try put("\(number)", over: "\(number - 1)", page: number * 100, on: store, pageCount: pages) }
            for number in 0..<60 { try put("branch\(number)", over: "59", page: number * 300, on: store, pageCount: pages) }
            let inTrunk = try store.delete(["30"])
            #expect(inTrunk.nodesRead <= 16, "one leaf, two inner nodes and a record, of three checkpoints")
            let tip = try store.delete(["branch7"])
            #expect(tip.nodesRead <= 12)
            // Everybody descends from it, and each has changed another page.
            let joint = try store.delete(["59"])
            #expect(joint.nodesRead <= 500, "at most the path of each branch")
            let orphan = try store.delete(["branch8"])
            #expect(orphan.nodesRead <= 20, "the siblings share what the deleted one had: the first that is asked settles it")
            try requireExact(store)
        }
    }

    @Test func `what a writer has superseded itself is not counted as alive`() throws {
        let store = try makeStore(SimulatedDevice(size: .mebibytes(8)))
        let writer = try store.begin("a", options: WriterOptions(parallelism: 1))
        let region = try writer.addRegion("ram", kind: .disk, byteLength: PageCount(1200).bytes)
        var random = SeededGenerator(seed: 3)
        for round in 0..<12 {
            for _ in 0..<(round % 3 == 0 ? 90 : 10) { try region.put(page: PageIndex(random.below(1200)), makePage(&random)) }
            let first = random.below(1100)
            try region.putZeros(PageIndex(first)..<PageIndex(first + 1 + random.below(99)))
        }
        try region.putZeros(PageIndex(512)..<PageIndex(1024))
        try writer.commit()
        try requireExact(store)
        try store.delete(["a"])
        #expect(try store.snapshot().slot.usedSegments <= 2, "the catalog is left")
    }

    @Test func `damage keeps space from coming back, not a checkpoint from being deleted`() throws {
        let device = SimulatedDevice(size: .mebibytes(4))
        let store = try makeStore(device)
        try put("a", on: store)
        let child = try put("b", over: "a", page: 3, on: store)
        // The root of b's region is a leaf that nobody else has.
        let root = try #require(child.record.regions[0].root)
        device.flipBit(1, at: store.geometry.position(of: root) + ByteCount(60))
        let result = try store.delete(["b"])
        #expect(result.deleted == ["b"])
        #expect(result.obstacle?.code == .corrupt)
        #expect(result.obstacle?.remedy.contains("ckstore repair") == true)
        #expect(result.unreadable.map(\.offset) == [store.geometry.position(of: root)])
        #expect(try store.snapshot().names() == ["a"])
        let report = try store.verify()
        #expect(report.isSound)
        #expect(report.lostPages > .zero && report.lostBytes > .zero, "what could not be looked at is lost until it is counted anew")
        #expect(try store.repair().isWhole)
        try requireExact(store)
    }

    @Test func `damage keeps the space back that stands below it, and no more`() async throws {
        try await onPlainThread {
            let device = SimulatedDevice(size: .mebibytes(16))
            let store = try makeStore(device)
            let spans = 40
            var roots: [BlockPointer] = []
            for (name, parent) in [("a", nil as String?), ("b", "a"), ("c", "b")] {
                let writer = try store.begin(name, parent: parent, options: WriterOptions(parallelism: 1))
                let ram = try writer.addRegion("ram", kind: .disk, byteLength: PageCount(spans * pagesPerSpan).bytes)
                for span in 0..<spans {
                    for page in 0..<70 { try ram.put(page: PageIndex(span * pagesPerSpan + page), [UInt8](repeating: UInt8(roots.count + 1), count: pageSize)) }
                }
                roots.append(try #require(try writer.commit().record.regions[0].root))
            }
            let slot = try store.newestSlot()
            func leaf(_ number: Int, of root: BlockPointer) throws -> BlockPointer {
                let bytes = try store.blocks(in: slot).readBlock(root)
                return try #require(try unsafe InnerNode.decode(bytes.span.bytes).children[number])
            }
            // One leaf of the middle one, and one of its child.
            let broken = [try leaf(7, of: roots[1]), try leaf(21, of: roots[2])]
            for block in broken { device.flipBit(1, at: store.geometry.position(of: block) + ByteCount(60)) }
            let result = try store.delete(["b"])
            #expect(Set(result.unreadable.compactMap(\.offset)) == Set(broken.map { store.geometry.position(of: $0) }))
            #expect(try store.verify(options: VerifyOptions(parallelism: 1)).damages.count == 1, "the leaf of the child")
            // When the damaged child is gone too, all can be counted anew.
            #expect(try store.delete(["c"]).unreadable.count == 1)
            let report = try store.verify(options: VerifyOptions(parallelism: 1))
            #expect(report.isSound)
            #expect(report.lostPages == PageCount(3 * 70), "those of the two leaves, and those of the other's beside one of them")
            #expect(try store.repair().isWhole)
            try requireExact(store)
        }
    }
}

@Suite struct FeatureTests {
    /// A store whose newest slot has other features, as another version may have written it.
    private func store(_ change: (inout Slot) -> Void) throws -> SimulatedDevice {
        let device = SimulatedDevice(size: .mebibytes(4))
        let store = try makeStore(device)
        try put("a", on: store)
        var slot = try store.newestSlot()
        change(&slot)
        for twin in [UInt8(0), 1] { try SlotRing.write(slot, twin: twin, to: store.medium) }
        try store.medium.flush()
        store.close()
        return device
    }

    private func open(_ device: SimulatedDevice) throws -> CheckpointStore {
        try CheckpointStore.open(FaultMedium(device), environment: testEnvironment(seed: 2))
    }

    @Test func `an unknown incompatible feature is refused by its name`() throws {
        let device = try store { slot in
            slot.incompat |= 1 << 40
            slot.featureNames.append(FeatureName(mask: .incompat, bit: 40, name: "holograms"))
        }
        let error = failure { _ = try open(device) }
        #expect(error?.code == .unsupported)
        #expect(error?.reason.contains("holograms") == true)
    }

    @Test func `an unknown feature that forbids writing lets a store be read, and is named when it is written`() throws {
        let device = try store { slot in
            slot.readOnlyCompat |= 1 << 9
            slot.featureNames.append(FeatureName(mask: .readOnlyCompat, bit: 9, name: "quotas"))
        }
        let store = try open(device)
        #expect(store.isReadOnly)
        #expect(try store.snapshot().names() == ["a"])
        for body in [{ try put("b", on: store) as Any }, { try store.delete(["a"]) }, { try store.setReference("x", to: "a") }] {
            let error = failure { _ = try body() }
            #expect(error?.code == .readOnly)
            #expect(error?.reason.contains("quotas") == true)
        }
    }

    @Test func `an unknown compatible feature is ignored, and commits keep it`() throws {
        let device = try store { slot in
            slot.compat |= 1 << 3
            slot.featureNames.append(FeatureName(mask: .compat, bit: 3, name: "colours"))
        }
        let store = try open(device)
        try put("b", on: store)
        try store.delete(["a"])
        let slot = try open(device).newestSlot()
        #expect(slot.compat == 1 << 3)
        #expect(slot.featureNames.contains(FeatureName(mask: .compat, bit: 3, name: "colours")))
    }

    @Test func `a store from before version 1 can be read, and says where to go when it is written`() throws {
        let device = try store { slot in
            slot.incompat |= Feature.draft
            slot.readOnlyCompat = 0
            slot.lineage = nil
            slot.featureNames = Feature.names(incompat: slot.incompat, readOnlyCompat: 0, compat: 0)
        }
        let store = try open(device)
        #expect(store.isReadOnly)
        #expect(try store.snapshot().checkpoint(named: "a").name == "a")
        #expect(failure { _ = try store.snapshot().checkpoint(named: "latest") }?.code == .notFound)
        let error = failure { try put("b", on: store) }
        #expect(error?.code == .readOnly)
        #expect(error?.remedy.contains("new store") == true)
    }
}
