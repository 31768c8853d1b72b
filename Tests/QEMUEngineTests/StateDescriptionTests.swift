// Fields of device state found by its description, and descriptions that lie.

import CheckpointCore
import MigrationStream
@testable import QEMUEngine
import Testing

/// Device state of one section "cpu" with `data`, described by `fields`.
private func state(_ data: [UInt8], _ fields: String, more: String = "", device: String = "cpu") throws -> DeviceState {
    let json = "{\"page_size\": 4096, \"devices\": [{\"name\": \"\(device)\", \"instance_id\": 0, \"version\": 1, \"fields\": [\(fields)]\(more)}]}"
    let head: [UInt8] = [4, 0, 0, 0, 5, 3] + Array("cpu".utf8) + [0, 0, 0, 0, 0, 0, 0, 1]
    let length = UInt32(json.utf8.count)
    let lengthBytes = [24, 16, 8, 0].map { UInt8(truncatingIfNeeded: length >> $0) }
    return try DeviceState(head + data + [0x7e, 0, 0, 0, 5, 0, 6] + lengthBytes + Array(json.utf8))
}

private func reader(_ state: DeviceState) throws -> FieldReader {
    try StateDescription(state).reader(of: state.sections[0], in: state)
}

@Suite struct StateDescriptionTests {
    @Test func `fields are found behind arrays and structures, by element, with optional parts behind them`() throws {
        let fields = """
            {"name": "a", "type": "uint16", "size": 2, "array_len": 2}, {"name": "a", "index": 2, "type": "uint16", "size": 2},
            {"name": "s", "type": "struct", "size": 3, "array_len": 2,
             "struct": {"vmsd_name": "s", "version": 1, "fields": [{"name": "x", "size": 1}, {"name": "y", "size": 2}]}},
            {"name": "z", "type": "uint8", "size": 1}
            """
        let part = ", \"subsections\": [{\"vmsd_name\": \"cpu/p\", \"version\": 1, \"fields\": [{\"name\": \"q\", \"size\": 1}]}]"
        let data: [UInt8] = [0, 1, 0, 2, 0, 3, 4, 0, 5, 6, 1, 7, 9]
        let partData: [UInt8] = [5, 5] + Array("cpu/p".utf8) + [0, 0, 0, 1, 42]
        let fieldsOf = try reader(try state(data + partData, fields, more: part))
        #expect(try (0..<3).map { try fieldsOf.number("a", element: $0) } == [1, 2, 3])
        #expect(try fieldsOf.group("s", element: 1).number("y") == 0x107)
        #expect(try fieldsOf.number("z") == 9)
        for (name, element) in [("a", 3), ("q", 0), ("", 0)] {
            #expect(throws: EngineError.self) { try fieldsOf.number(name, element: element) }
        }
        #expect(throws: EngineError.self) { try fieldsOf.group("z") }
    }

    @Test func `a description that does not fit its section is not used`() throws {
        let wrong = [
            "{\"name\": \"a\", \"size\": 3}", "{\"name\": \"a\", \"size\": -4}, {\"name\": \"b\", \"size\": 8}",
            "{\"name\": \"a\", \"size\": 9223372036854775807, \"array_len\": 3}", "{\"name\": \"a\", \"size\": 4, \"array_len\": -1}",
            "{\"name\": \"a\", \"size\": 9223372036854775807}, {\"name\": \"b\", \"size\": 9223372036854775807}", "{\"size\": 4}",
            "{\"name\": \"a\", \"size\": \"4\"}", "{\"name\": 4, \"size\": 4}",
        ]
        for fields in wrong {
            let error = #expect(throws: EngineError.self, "\(fields)") { try reader(try state([1, 2, 3, 4], fields)) }
            #expect(error?.code == .corrupt, "\(fields)")
        }
        #expect(throws: EngineError.self) { try reader(try state([1], "{\"name\": \"a\", \"size\": 1}", device: "other")) }
        let nested = String(repeating: "{\"name\": \"a\", \"size\": 1, \"struct\": {\"fields\": [", count: 5000)
        #expect(throws: EngineError.self) { try reader(try state([1], nested)) }
        let bare = try DeviceState(try state([1], "").bytesWithoutDescription)
        #expect(#expect(throws: EngineError.self) { try StateDescription(bare) }?.code == .unsupported)
    }
}
