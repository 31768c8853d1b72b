// The description that QEMU puts behind device state: the fields of every device, in their order, with names and sizes.
//
// Invariants:
// - A description is used for a section only when its sizes add up to just the section's length.
// - Sizes come from outside: sums of them are checked, and nothing is read outside the section.

import CheckpointCore
import FoundationEssentials
import MigrationStream

/// What devices' sections hold, for looking fields up by name.
struct StateDescription: Decodable {
    /// A device, a structure within one, or an optional part behind its fields.
    struct Group: Decodable {
        var name: String?
        var instance: UInt32?
        /// An optional part's name in the stream.
        var partName: String?
        var fields: [Field]?
        var parts: [Group]?

        private enum CodingKeys: String, CodingKey {
            case name, instance = "instance_id", partName = "vmsd_name", fields, parts = "subsections"
        }
    }

    /// One field, or an array of equal ones.
    struct Field: Decodable {
        var name: String
        /// Of each element.
        var byteLength: Int?
        /// Elements described together.
        var count: Int?
        /// The structure of an element.
        var group: Group?

        private enum CodingKeys: String, CodingKey {
            case name, byteLength = "size", count = "array_len", group = "struct"
        }
    }

    private var devices: [Group]

    /// - Throws: `.unsupported` when the state has no description, `.corrupt` when it is none.
    init(_ state: DeviceState) throws(EngineError) {
        guard let json = state.description else {
            throw EngineError(
                .unsupported, "the device state has no description, without which its registers can't be found",
                remedy: "Take the checkpoint from a machine that is not started with suppress-vmdesc=on.")
        }
        do { self = try JSONDecoder().decode(Self.self, from: Data(state.bytes[json])) } catch {
            throw Self.corrupt("has a description that is no JSON of QEMU's form")
        }
    }

    /// The fields of a device's section.
    /// - Throws: `.corrupt` when the description has no such device, or does not fit the section.
    func reader(of section: DeviceState.Section, in state: DeviceState) throws(EngineError) -> FieldReader {
        guard let device = devices.first(where: { $0.name == section.name && $0.instance ?? 0 == section.instance }),
            let length = device.byteLength(isPart: false), length == section.data.count
        else { throw Self.corrupt("has a description that does not fit its section \(section.name)") }
        return FieldReader(fields: device.fields ?? [], bytes: state.bytes[section.data], place: section.name)
    }

    fileprivate static func corrupt(_ reason: String) -> EngineError {
        EngineError(.corrupt, "the device state \(reason)", remedy: "It is damaged, or was not taken from QEMU.", place: "device state")
    }
}

extension StateDescription.Group {
    /// What it takes in the stream; nil when that is no number.
    fileprivate func byteLength(isPart: Bool) -> Int? {
        // A part has a head: its type, its name with a length, its version.
        var sum = isPart ? 6 + (partName ?? "").utf8.count : 0
        for field in fields ?? [] {
            guard let length = field.totalByteLength, let next = sum.adding(length) else { return nil }
            sum = next
        }
        for part in parts ?? [] {
            guard let length = part.byteLength(isPart: true), let next = sum.adding(length) else { return nil }
            sum = next
        }
        return sum
    }
}

extension StateDescription.Field {
    /// Of all elements; nil when that is no number.
    fileprivate var totalByteLength: Int? {
        let (size, elements) = (byteLength ?? 0, count ?? 1)
        guard size >= 0, elements >= 0 else { return nil }
        let (product, overflow) = size.multipliedReportingOverflow(by: elements)
        return overflow ? nil : product
    }
}

extension Int {
    fileprivate func adding(_ other: Int) -> Int? {
        let (sum, overflow) = addingReportingOverflow(other)
        return overflow ? nil : sum
    }
}

/// Reads fields by name.
struct FieldReader {
    fileprivate let fields: [StateDescription.Field]
    fileprivate let bytes: ArraySlice<UInt8>
    fileprivate let place: String

    /// The number in a field of at most 8 bytes.
    /// - Parameter element: which one of an array, counted over all fields of that name.
    func number(_ name: String, element: Int = 0) throws(EngineError) -> UInt64 {
        let (_, range) = try find(name, element)
        guard range.count <= 8 else { throw missing(name) }
        return bytes[range].reduce(0) { $0 << 8 | UInt64($1) }
    }

    /// The fields of a structure.
    func group(_ name: String, element: Int = 0) throws(EngineError) -> FieldReader {
        let (field, range) = try find(name, element)
        guard let group = field.group, group.byteLength(isPart: false) == range.count else { throw missing(name) }
        return FieldReader(fields: group.fields ?? [], bytes: bytes[range], place: "\(place).\(name)")
    }

    private func find(_ name: String, _ element: Int) throws(EngineError) -> (StateDescription.Field, Range<Int>) {
        var (start, passed) = (bytes.startIndex, 0)
        for field in fields {
            let (size, count) = (field.byteLength ?? 0, field.count ?? 1)
            if field.name == name {
                if element < passed + count {
                    let low = start + (element - passed) * size
                    return (field, low..<low + size)
                }
                passed += count
            }
            start += size * count
        }
        throw missing(name)
    }

    private func missing(_ name: String) -> EngineError {
        EngineError(
            .unsupported, "the device state's section \(place) has no field \(name)",
            remedy: "This version of QEMU lays its registers out in another way.")
    }
}
