// The nodes of a store's own trees, found by the format alone.
//
// Invariant: what is listed is what the newest slot reaches, every node once, at the time of the listing.

import FaultHarness
import StoreFormat
import StoreTesting
import Units

/// A node of one of the trees that a store keeps of itself.
struct OwnNode: CustomStringConvertible {
    var tree: String
    var level: UInt8
    var pointer: BlockPointer
    var offset: Int

    var description: String { "\(tree), level \(level), at \(pointer)" }
}

extension SimulatedDevice {
    /// The slot of the newest generation.
    func newestSlot() throws -> Slot {
        var slots: [Slot] = []
        for position in 0..<Slot.ringLength {
            let slot = bytes(at: MediumOffset(UInt64(position * Slot.encodedLength)), count: Slot.encodedLength)
            if let slot = unsafe try? Slot.decode(slot.span.bytes, position: position, twin: 0) { slots.append(slot) }
        }
        guard let newest = slots.max(by: { $0.generation < $1.generation }) else { throw Mismatch("no slot") }
        return newest
    }

    /// All nodes of the five trees, and the forwarding tables.
    func ownNodes() throws -> [OwnNode] {
        let slot = try newestSlot()
        var walk = OwnWalk(device: self, slot: slot)
        for case let root? in [slot.catalogByID, slot.catalogByName, slot.lineage, slot.forwarding] { try walk.catalog(root) }
        if let root = slot.segmentTable { try walk.table(root, slot.geometry.tableDepth) }
        return walk.nodes
    }

    /// Makes everything zero in segments of the catalog's class that the newest slot does not reach: older copies of nodes.
    func eraseOlderNodes() throws {
        let slot = try newestSlot()
        let size = Int(slot.geometry.segmentSize)
        var kept: [Int: Set<Int>] = [:]
        for node in try ownNodes() {
            let first = Int(node.pointer.offset.rawValue) / blockAlignment
            let count = (Int(node.pointer.storedLength) + blockAlignment - 1) / blockAlignment
            kept[Int(node.pointer.segment.rawValue), default: []].formUnion(first..<first + count)
        }
        for number in 0..<Int(slot.geometry.segmentCount) {
            let start = slot.geometry.offset(of: SegmentIndex(number))
            let header = bytes(at: start, count: SegmentHeader.encodedLength)
            guard unsafe (try? SegmentHeader.decode(header.span.bytes))?.segmentClass == .catalog else { continue }
            var content = bytes(at: start, count: size)
            for unit in 2..<size / blockAlignment where kept[number]?.contains(unit) != true {
                for byte in unit * blockAlignment..<(unit + 1) * blockAlignment where content[byte] != 0 { content[byte] = 0 }
            }
            overwrite(at: start, with: content)
        }
    }

    /// Makes a node unreadable: one bit of it, or all of it.
    func destroy(_ node: OwnNode, _ random: inout SeededGenerator, wholly: Bool) {
        if wholly {
            overwrite(at: MediumOffset(UInt64(node.offset)), with: [UInt8](repeating: 0, count: Int(node.pointer.storedLength)))
        } else {
            flipBit(random.below(8), at: MediumOffset(UInt64(node.offset + random.below(Int(node.pointer.storedLength)))))
        }
    }
}

/// Goes through the trees of one slot.
private struct OwnWalk {
    let device: SimulatedDevice
    let slot: Slot
    var nodes: [OwnNode] = []

    private func read(_ pointer: BlockPointer) throws -> [UInt8] {
        let bytes = device.bytes(at: slot.geometry.position(of: pointer), count: Int(pointer.storedLength))
        unsafe try Block.verify(bytes.span.bytes, pointer: pointer)
        return bytes
    }

    private mutating func note(_ tree: String, _ level: UInt8, _ pointer: BlockPointer) {
        nodes.append(OwnNode(tree: tree, level: level, pointer: pointer, offset: slot.geometry.position(of: pointer).int))
    }

    mutating func catalog(_ pointer: BlockPointer) throws {
        let bytes = try read(pointer)
        let node = unsafe try CatalogNode.decode(bytes.span.bytes)
        note("\(node.tree)", node.level, pointer)
        for entry in node.entries {
            switch entry.payload {
            case .child(let child): try catalog(child)
            case .leaf(let value) where node.tree == .forwarding:
                let table = unsafe try BlockPointer.decode(value.span.bytes)
                if let table { note("table of moved blocks", 0, table) }
            case .leaf: break
            }
        }
    }

    mutating func table(_ pointer: BlockPointer, _ level: UInt8) throws {
        note("segment table", level, pointer)
        guard level > 0 else { return }
        let bytes = try read(pointer)
        let node = unsafe try TableInner.decode(bytes.span.bytes)
        for child in node.children { if let child { try table(child, level - 1) } }
    }
}
