// Device state taken apart, and its run state changed.

import CheckpointCore
import MigrationStream
import Testing

@Test func `sections are told apart by their footers, whatever their data looks like`() throws {
    for description in ["{\"a\": 1}", nil] {
        let blob = deviceBlob(description: description)
        let state = try DeviceState(blob)
        #expect(state.sections.map(\.name) == ["timer", "cpu", "globalstate"])
        #expect(state.sections.map(\.data.count) == [24, 26, 104])
        #expect(Array(blob[state.sections[0].data]) == Array(0..<24))
        #expect(state.description.map { String(decoding: blob[$0], as: UTF8.self) } == description)
        #expect(state.bytesWithoutDescription == deviceBlob(description: nil))
        #expect(state.sectionBytes == deviceBlob(description: nil).dropLast())
    }
}

@Test func `the run state is changed, and nothing else`() throws {
    var state = try DeviceState(deviceBlob(state: "paused"))
    #expect(try state.runState() == "paused")
    try state.setRunState("running")
    #expect(state.bytes == deviceBlob(state: "running"))
    #expect(try state.runState() == "running")
    try state.setRunState("paused")
    #expect(state.bytes == deviceBlob(state: "paused"))
}

@Test func `device state that is cut, empty or without a run state is refused`() throws {
    let blob = deviceBlob(description: nil)
    for length in 0..<blob.count {
        #expect(throws: EngineError.self, "\(length) bytes") { try DeviceState(Array(blob[..<length])) }
    }
    for bytes in [[0], blob + [0], Array(blob.dropFirst()), deviceBlob(description: "{\"a\": 1") ] {
        #expect(throws: EngineError.self) { try DeviceState(bytes) }
    }
    let silent = try DeviceState(deviceSection(3, "timer", [1, 2, 3]) + [0])
    let error = #expect(throws: EngineError.self) { try silent.runState() }
    #expect(error?.reason.contains("whether the machine ran") == true)
}
