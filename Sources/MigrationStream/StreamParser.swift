// The parser of QEMU's migration stream: bytes in, pages and device state out. No I/O, no memory of its own but the list of
// blocks.
//
// How to use it:
//
//     var parser = StreamParser()
//     while let more = read into the free end of a window {
//         let consumed = try parser.feed(whole content of the window, &handler)
//         move what was not consumed to the window's start
//     }
//     try parser.finish()          // a stream that ends too early throws here
//
// A window of `StreamParser.minimumWindowBytes` or more always makes progress. The handler (`StreamHandler`) hears, in
// this order: `configuration`, `ramBlocks`, then any number of `page` and `zeroPage`, then `deviceState` in pieces that joined make the blob
// of which `DeviceState` is the view. Nothing is kept that was handed over: pointers are good only during the call.
//
// Invariants:
// - Only whole elements are consumed; what `feed` returns never cuts one.
// - Nothing is allocated on the way of a page, and nothing ever by a size that the stream alone says.
// - A page that is handed over lies within its block and is one page of it.
// - A parser that has thrown is used no more.

import CheckpointCore
import Units

/// Takes what a `StreamParser` finds. What it throws comes out of `feed` as it is.
public protocol StreamHandler {
    /// The versioned machine type ("pc-i440fx-7.2") and the capabilities that the stream declares, once.
    mutating func configuration(machineType: String, capabilities: [String]) throws(EngineError)
    /// All blocks of RAM, once. Their indexes stand for them from here on.
    mutating func ramBlocks(_ blocks: [StreamRAMBlock]) throws(EngineError)
    /// One page of 4096 bytes, good until this returns. In a stream taken while the machine ran a page can come again: the last
    /// one counts, a zero page too.
    mutating func page(block: Int, _ page: PageIndex, _ bytes: UnsafeRawBufferPointer) throws(EngineError)
    /// One page of zeros.
    mutating func zeroPage(block: Int, _ page: PageIndex) throws(EngineError)
    /// The next piece of the device state: of everything from the first device's section to the end of the stream.
    mutating func deviceState(_ bytes: UnsafeRawBufferPointer) throws(EngineError)
}

/// Parses one migration stream. A value: use it from one thread at a time.
public struct StreamParser {
    /// The longest element that `feed` consumes only whole: a record with a name and a page.
    public static let minimumWindowBytes = 8192
    /// How much device state is allowed unless told otherwise.
    public static let defaultDeviceStateLimit = ByteCount.mebibytes(256)

    /// The blocks of RAM, once they are known; filled while their list is read.
    public internal(set) var blocks: [StreamRAMBlock] = []
    /// Bytes consumed since the start of the stream.
    public private(set) var consumedBytes = ByteCount.zero
    /// Bytes of device state that were handed over.
    public internal(set) var deviceStateBytes = ByteCount.zero

    var state = State.header
    var machineType = ""
    var capabilities: [String] = []
    var ramSectionID: UInt32 = 0
    /// Bytes of memory that the list of blocks has yet to account for.
    var unlistedBytes: UInt64 = 0
    /// The block of the previous record; nil before the first one.
    var currentBlock: Int?
    var hasEnded = false
    var tail = DeviceStateTail()
    /// Where the element that is being parsed starts in the stream.
    var elementOffset: UInt64 = 0
    private var pendingBytes = 0
    private var hasFailed = false
    let deviceStateLimit: ByteCount
    let postcopyPageBytes: [String: UInt64]

    /// - Parameters:
    ///   - deviceStateLimit: more device state than this is refused.
    ///   - postcopyPageBytes: for a stream whose source has the capability postcopy-ram: page sizes of the blocks that have
    ///     other pages than those of 4096 bytes. Such a stream carries them too but does not say so; they must agree.
    public init(
        deviceStateLimit: ByteCount = StreamParser.defaultDeviceStateLimit, postcopyPageBytes: [String: UInt64] = [:]
    ) {
        self.deviceStateLimit = deviceStateLimit
        self.postcopyPageBytes = postcopyPageBytes
    }

    /// What comes next.
    enum State {
        case header, configuration, configurationEnd, capability(remaining: Int), ramStart, ramSize, ramBlock, ramListEnd
        case section, records, footer, deviceState
    }

    /// Parses as many whole elements as `bytes` has, and hands them to `handler`.
    ///
    /// The caller keeps the rest, and gives it again with what follows.
    /// - Returns: how many bytes were consumed; fewer than `minimumWindowBytes` remain.
    /// - Throws: `.corrupt` when the stream breaks its own rules, `.unsupported` when it has something that is no part of a
    ///   checkpoint's stream; what the handler throws. The parser is used up then.
    public mutating func feed(
        _ bytes: UnsafeRawBufferPointer, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Int {
        precondition(!hasFailed, "the parser has failed before")
        hasFailed = true
        var cursor = unsafe FieldCursor(bytes)
        let base = consumedBytes.rawValue
        var start = 0
        repeat {
            start = cursor.position
            elementOffset = base + UInt64(start)
        } while try element(&cursor, base: base, &handler)
        if case .records = state { start = Int(elementOffset - base) }
        consumedBytes = ByteCount(base + UInt64(start))
        pendingBytes = bytes.count - start
        hasFailed = false
        return start
    }

    /// Says that the stream is over.
    /// - Throws: `.corrupt` when it ended too early: the reason names what it ended in.
    public func finish() throws(EngineError) {
        precondition(!hasFailed, "the parser has failed before")
        guard case .deviceState = state, pendingBytes == 0 else { throw truncated(in: place) }
        guard tail.isComplete else { throw truncated(in: "the device state") }
    }

    /// One element, or in the two long stretches as many as there are.
    /// - Returns: false when the window ends within the element.
    private mutating func element(
        _ cursor: inout FieldCursor, base: UInt64, _ handler: inout some StreamHandler
    ) throws(EngineError) -> Bool {
        switch state {
        case .header: try header(&cursor)
        case .configuration: try configuration(&cursor)
        case .configurationEnd: try configurationEnd(&cursor, &handler)
        case .capability(let remaining): try capability(&cursor, remaining: remaining, &handler)
        case .ramStart: try ramStart(&cursor)
        case .ramSize: try ramSize(&cursor)
        case .ramBlock: try ramBlock(&cursor)
        case .ramListEnd: try ramListEnd(&cursor, &handler)
        case .section: try section(&cursor)
        case .records: try records(&cursor, base: base, &handler)
        case .footer: try footer(&cursor)
        case .deviceState: try deviceState(&cursor, &handler)
        }
    }

    /// What the parser is in the middle of.
    private var place: String {
        switch state {
        case .header: "its header"
        case .configuration, .configurationEnd, .capability: "the configuration"
        case .ramStart, .ramSize, .ramBlock, .ramListEnd: "the list of RAM blocks"
        case .section: "the memory, between two sections"
        case .records, .footer: "a section of memory"
        case .deviceState: "the device state"
        }
    }

    private func truncated(in place: String) -> EngineError {
        EngineError(
            .corrupt, "the migration stream ends in \(place)",
            remedy: "Whoever sent it stopped too early; take it again.",
            place: "byte \(consumedBytes.rawValue + UInt64(pendingBytes)) of the stream")
    }

    /// An error at the element that is being parsed.
    func corrupt(_ reason: String) -> EngineError {
        EngineError(
            .corrupt, "the migration stream has \(reason)", remedy: "It is damaged, or no stream of QEMU.",
            place: "byte \(elementOffset) of the stream")
    }

    func unsupported(_ reason: String, remedy: String) -> EngineError {
        EngineError(
            .unsupported, "the migration stream has \(reason)", remedy: remedy, place: "byte \(elementOffset) of the stream")
    }

    /// The text of a name; 1 to 255 bytes of UTF-8.
    func name(_ bytes: UnsafeRawBufferPointer, _ what: String) throws(EngineError) -> String {
        guard unsafe !bytes.isEmpty, let text = unsafe String(validating: bytes, as: UTF8.self) else {
            throw corrupt(unsafe "a \(what) whose name is \(bytes.isEmpty ? "empty" : "no text")")
        }
        return text
    }
}
