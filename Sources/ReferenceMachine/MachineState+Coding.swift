// A machine's state as bytes: a head with version and checksum, then its fields in order, little-endian.
//
// Invariants:
// - What `decode` returns was encoded by `encode`, or is as good: every byte is covered by the checksum or has one allowed value.
// - Structures of the kernel are kept as the bytes that they are in its interface for x86-64; the kernel judges their content when they
//   are loaded.

import CKVM
import CheckpointCore
import PageCodec
import Units

extension MachineState {
    /// "CKREFVM1", read as a little-endian number.
    private static let magic: UInt64 = 0x314d_5646_4552_4b43
    private static let version: UInt32 = 1
    /// Magic, version, zero, length and checksum of what follows.
    private static let headLength = 8 + 4 + 4 + 8 + 16

    /// The longest state that is read.
    static let maximumLength = ByteCount.mebibytes(16)
    static let maximumPartLength = 1 << 16
    static let maximumRegisterCount = 256
    /// Memory pieces and disks of a machine.
    static let maximumPieceCount = 64

    func encode() -> [UInt8] {
        var body = StateWriter()
        body.put(UInt32(memoryLengths.count))
        for length in memoryLengths { body.put(length) }
        body.put(UInt32(diskLengths.count))
        for length in diskLengths { body.put(length) }
        body.put(counted: features.entries)
        body.put(UInt32(processors.count))
        for processor in processors { processor.encode(&body) }
        devices.encode(&body)

        var head = StateWriter()
        head.put(Self.magic)
        head.put(Self.version)
        head.put(UInt32(0))
        head.put(UInt64(body.bytes.count))
        let checksum = unsafe hash128(body.bytes.span.bytes)
        head.put(checksum.low)
        head.put(checksum.high)
        return head.bytes + body.bytes
    }

    /// - Throws: `.corrupt` for anything that is no state, `.unsupported` for one of a newer version.
    init(decoding bytes: [UInt8], place: String) throws(EngineError) {
        var head = StateReader(bytes.prefix(Self.headLength), place: place)
        guard (Self.headLength...Self.maximumLength.int).contains(bytes.count) else { throw head.corrupt("it has \(bytes.count) bytes") }
        guard try head.number() == Self.magic else { throw head.corrupt("it does not begin like one") }
        let version: UInt32 = try head.number()
        guard version == Self.version else {
            throw EngineError(
                .unsupported, "the device state has version \(version), this program knows \(Self.version)",
                remedy: "Use the program that saved it, or a newer one.", place: place)
        }
        guard try head.number() == UInt32(0) else { throw head.corrupt("a field that must be 0 is not") }
        guard try head.number() == UInt64(bytes.count - Self.headLength) else { throw head.corrupt("it is shorter or longer than it says") }
        let checksum = Hash128(low: try head.number(), high: try head.number())
        guard unsafe checksum == hash128(bytes.span.bytes.extracting(droppingFirst: Self.headLength)) else {
            throw head.corrupt("its checksum is another")
        }

        var body = StateReader(bytes.dropFirst(Self.headLength), place: place)
        memoryLengths = try Self.lengths("pieces of memory", &body)
        diskLengths = try Self.lengths("disks", &body)
        features = ProcessorFeatures(entries: try body.counted("processor features", limit: ProcessorFeatures.maximumLength))
        guard features.entries.count % Int(ck_cpuid_entry_size) == 0 else {
            throw body.corrupt("\(features.entries.count) bytes of processor features")
        }
        let processorCount = try body.count("processors", limit: GuestStart.maximumProcessorCount, atLeast: 9)
        guard processorCount > 0 else { throw body.corrupt("it has no processor") }
        processors = []
        for _ in 0..<processorCount { processors.append(try ProcessorState(decoding: &body)) }
        devices = try DeviceState(decoding: &body, diskCount: diskLengths.count, processorCount: processorCount)
        try body.end()
    }

    private static func lengths(_ what: String, _ body: inout StateReader) throws(EngineError) -> [ByteCount] {
        var lengths: [ByteCount] = []
        for _ in 0..<(try body.count(what, limit: maximumPieceCount, atLeast: 8)) { lengths.append(try body.quantity()) }
        return lengths
    }
}

extension ProcessorState {
    fileprivate func encode(_ body: inout StateWriter) {
        body.put(UInt8(isHalted ? 1 : 0))
        body.put(UInt32(parts.count))
        for part in parts { body.put(counted: part) }
        body.put(UInt32(registers.count))
        for register in registers {
            body.put(register.index)
            body.put(register.value)
        }
    }

    fileprivate init(decoding body: inout StateReader) throws(EngineError) {
        isHalted = try body.flag("whether a processor has halted")
        parts = []
        registers = []
        guard try body.count("parts of a processor", limit: KernelProcessor.partCount, atLeast: 4) == KernelProcessor.partCount else {
            throw body.corrupt("a processor lacks parts")
        }
        for _ in 0..<KernelProcessor.partCount {
            parts.append(try body.counted("a part of a processor", limit: MachineState.maximumPartLength))
        }
        for _ in 0..<(try body.count("registers", limit: MachineState.maximumRegisterCount, atLeast: 12)) {
            registers.append(Register(index: try body.number(), value: try body.number()))
        }
    }
}

extension DeviceState {
    fileprivate func encode(_ body: inout StateWriter) {
        body.put(serial.sentCount)
        body.put(counted: serial.input)
        for registers in diskRegisters.joined() { registers.encode(&body) }
        body.put(nextRequest)
        body.put(UInt32(pending.count))
        for request in pending {
            body.put(request.number)
            body.put(request.disk)
            body.put(request.operation.rawValue)
            request.registers.encode(&body)
            body.put(request.status.rawValue)
        }
    }

    fileprivate init(decoding body: inout StateReader, diskCount: Int, processorCount: Int) throws(EngineError) {
        self.init(diskCount: diskCount, processorCount: processorCount)
        serial.sentCount = try body.quantity()
        serial.input = try body.counted("serial input", limit: SerialPort.maximumInputLength)
        for disk in 0..<diskCount {
            for processor in 0..<processorCount { diskRegisters[disk][processor] = try DiskRegisters(decoding: &body) }
        }
        nextRequest = try body.quantity()
        for _ in 0..<(try body.count("pending requests", limit: DiskController.maximumPendingCount, atLeast: 36)) {
            pending.append(try PendingRequest(decoding: &body, diskCount: diskCount))
        }
        let numbers = pending.map(\.number) + [nextRequest]
        guard zip(numbers, numbers.dropFirst()).allSatisfy({ $0 < $1 }) else { throw body.corrupt("pending requests are not in order") }
    }
}

extension PendingRequest {
    fileprivate init(decoding body: inout StateReader, diskCount: Int) throws(EngineError) {
        number = try body.quantity()
        disk = try body.number()
        guard disk < diskCount else { throw body.corrupt("a pending request of disk \(disk)") }
        let code: UInt32 = try body.number()
        guard let operation = DMAOperation(rawValue: code) else { throw body.corrupt("a pending request of kind \(code)") }
        self.operation = operation
        registers = try DiskRegisters(decoding: &body)
        let status: UInt32 = try body.number()
        guard let known = RequestStatus(rawValue: status) else { throw body.corrupt("a pending request with status \(status)") }
        self.status = known
    }
}

extension DiskRegisters {
    fileprivate func encode(_ body: inout StateWriter) {
        body.put(sector)
        body.put(bufferAddress)
        body.put(sectorCount)
        body.put(statusAddress)
    }

    fileprivate init(decoding body: inout StateReader) throws(EngineError) {
        sector = try body.number()
        bufferAddress = try body.number()
        sectorCount = try body.number()
        statusAddress = try body.number()
    }
}

extension StateReader {
    fileprivate mutating func flag(_ what: String) throws(EngineError) -> Bool {
        let value: UInt8 = try number()
        guard value <= 1 else { throw corrupt("\(what) is \(value)") }
        return value == 1
    }
}
