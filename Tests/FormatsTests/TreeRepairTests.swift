// Stores whose own trees were destroyed and rebuilt, read by the reader in Python.

import CheckpointStore
import FaultHarness
import Foundation
import Media
import StoreFormat
import Testing
import Units

@Suite struct RebuiltTreeTests {
    private static let page = UInt64(pageSize)

    /// The newest slot in ring A of a store in a file.
    private func newestSlot(_ path: String) throws -> Slot {
        let bytes = try Data(contentsOf: URL(filePath: path))
        var newest: Slot?
        for position in 0..<Slot.ringLength {
            let piece = [UInt8](bytes[position * Slot.encodedLength..<(position + 1) * Slot.encodedLength])
            guard let slot = unsafe try? Slot.decode(piece.span.bytes, position: position, twin: 0) else { continue }
            if newest.map({ $0.generation < slot.generation }) ?? true { newest = slot }
        }
        guard let newest else { throw Mismatch("no slot in \(path)") }
        return newest
    }

    @Test func `rebuilt trees read alike in Python`() async throws {
        try await onPlainThread {
            let files = try TemporaryDirectory()
            var shop = try Workshop(fileMedium(files, "store", .mebibytes(32)), segmentSize: .kibibytes(128), seed: 71)
            let ram = 300 * Self.page
            try shop.save("base", RegionChange(name: "ram", byteLength: ram, changes: shop.pages(0..<200, salt: 1)))
            for name in ["left", "right", "far"] {
                try shop.save(name, parent: "base", RegionChange(name: "ram", byteLength: ram, changes: shop.pages(10..<90, salt: UInt64(name.count))))
            }
            try shop.delete(["base"])
            _ = try shop.store.compact(CompactionOptions(targetAmplification: 1, minimumDeadShare: 0.01, parallelism: 1))
            shop.store.close()
            let path = files.path("store")
            let roots: [(Slot) -> BlockPointer?] = [
                { $0.catalogByID }, { $0.catalogByName }, { $0.lineage }, { $0.forwarding }, { $0.segmentTable },
            ]
            for (number, root) in roots.enumerated() {
                let slot = try newestSlot(path)
                guard let pointer = root(slot) else { throw Mismatch("tree \(number) is empty") }
                let handle = try FileHandle(forUpdating: URL(filePath: path))
                try handle.seek(toOffset: slot.geometry.position(of: pointer).rawValue)
                try handle.write(contentsOf: Data(count: Int(pointer.storedLength)))
                try handle.close()
                let store = try CheckpointStore.open(openMedium(Locator(kind: .file, target: path), access: .readWrite))
                let report = try store.repair(options: RepairOptions(parallelism: 1))
                store.close()
                guard report.remaining.isEmpty, report.obstacle == nil, report.trees.trees.count == 1 else { throw Mismatch("\(report)") }
                try requireAgreement(path, model: shop.model)
            }
        }
    }
}
