// The device state of a machine: the part of a migration stream behind its memory, as one blob.
//
// Invariants:
// - The blob is a row of sections, each with its footer, an end-of-stream byte, and perhaps a description in JSON that ends it.
// - Nothing but the run state is ever changed in it.
// - Sections carry no length. They are told apart by their footers: a footer counts only when the next section's head, or the end,
//   follows it.

import CheckpointCore
import Units

/// The device state of a checkpoint, checked and taken apart. A value.
public struct DeviceState: Sendable {
    /// One device's section.
    public struct Section: Sendable, Equatable {
        /// The device's name: "cpu", "timer", "0000:00:01.0/piix4_pm".
        public var name: String
        public var sectionID: UInt32
        public var instance: UInt32
        public var version: UInt32
        /// Where its data is in the blob: behind the head, before the footer.
        public var data: Range<Int>
    }

    /// The blob: from the first section to the end of the stream.
    public private(set) var bytes: [UInt8]
    /// In the order of the stream.
    public let sections: [Section]
    /// Where the description's JSON is; nil when there is none.
    public let description: Range<Int>?
    /// Behind the last section's footer: where the end-of-stream byte is.
    private let endOffset: Int

    /// Takes a blob apart.
    /// - Throws: `.corrupt` when it is no complete device state.
    public init(_ bytes: [UInt8]) throws(EngineError) {
        var tail = DeviceStateTail()
        tail.append(bytes)
        guard tail.isComplete else { throw Self.corrupt("does not end where it should") }
        let json = tail.endsWithDescription ? tail.description.map { Int($0.start)..<Int($0.end) } : nil
        // Before the JSON: its type byte and length, and before those the end-of-stream byte.
        endOffset = (json.map { $0.lowerBound - 5 } ?? bytes.count) - 1
        description = json
        sections = try Self.sections(bytes, upTo: endOffset)
        self.bytes = bytes
    }

    /// The blob without the description, which QEMU does not need.
    public var bytesWithoutDescription: [UInt8] { Array(bytes[...endOffset]) }

    /// All sections with their heads and footers, and nothing behind them: what postcopy packs.
    public var sectionBytes: ArraySlice<UInt8> { bytes[..<endOffset] }

    /// The sections of devices called `name`, by instance.
    public func sections(named name: String) -> [Section] {
        sections.filter { $0.name == name }.sorted { $0.instance < $1.instance }
    }

    /// What the machine did when the state was taken: "running", "paused".
    /// - Throws: `.corrupt` when the blob does not say.
    public func runState() throws(EngineError) -> String {
        let field = try runStateField()
        let text = bytes[field].prefix { $0 != 0 }
        guard !text.isEmpty, text.count < field.count, let state = String(validating: text, as: UTF8.self) else {
            throw Self.corrupt("has a run state that is no text")
        }
        return state
    }

    /// Makes the state say that the machine ran ("running") or not ("paused"): a restored machine goes on by itself, or waits.
    /// - Throws: `.corrupt` when the blob does not say what it did.
    public mutating func setRunState(_ state: String) throws(EngineError) {
        let field = try runStateField()
        precondition((1..<field.count).contains(state.utf8.count), "a run state of 1 to 99 bytes")
        var length: [UInt8] = []
        length.appendBigEndian(UInt32(state.utf8.count + 1))
        let padding = [UInt8](repeating: 0, count: field.count - state.utf8.count)
        bytes.replaceSubrange((field.lowerBound - 4)..<field.upperBound, with: length + Array(state.utf8) + padding)
    }

    /// The 100 bytes of text in the section "globalstate", behind the length of the text.
    private func runStateField() throws(EngineError) -> Range<Int> {
        guard let section = sections(named: "globalstate").first, section.data.count == 104 else {
            throw Self.corrupt("does not say whether the machine ran")
        }
        return (section.data.lowerBound + 4)..<section.data.upperBound
    }

    static func corrupt(_ reason: String) -> EngineError {
        EngineError(
            .corrupt, "the device state \(reason)", remedy: "It is damaged, or was not taken from QEMU.",
            place: "device state")
    }
}
