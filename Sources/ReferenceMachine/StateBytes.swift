// Numbers of a device state as bytes, little-endian, and back.
//
// Invariant: nothing is read or allocated before it is known to be there.

import CheckpointCore
import Units

/// Builds a state, field by field.
struct StateWriter {
    private(set) var bytes: [UInt8] = []

    mutating func put<Number: FixedWidthInteger & UnsignedInteger>(_ value: Number) {
        for byte in 0..<Number.bitWidth / 8 { bytes.append(UInt8(truncatingIfNeeded: value >> (byte * 8))) }
    }

    mutating func put(_ value: some Quantity) { put(value.rawValue) }

    /// Bytes with their count of 32 bits before them.
    mutating func put(counted value: [UInt8]) {
        put(UInt32(value.count))
        bytes.append(contentsOf: value)
    }
}

/// Reads a state that nobody vouches for.
struct StateReader {
    private var rest: ArraySlice<UInt8>
    private let place: String

    init(_ bytes: ArraySlice<UInt8>, place: String) {
        rest = bytes
        self.place = place
    }

    mutating func number<Number: FixedWidthInteger & UnsignedInteger>(_ type: Number.Type = Number.self) throws(EngineError) -> Number {
        var value: Number = 0
        for (index, byte) in try take(Number.bitWidth / 8).enumerated() { value |= Number(byte) << (index * 8) }
        return value
    }

    mutating func quantity<Value: Quantity>(_ type: Value.Type = Value.self) throws(EngineError) -> Value { Value(try number(UInt64.self)) }

    /// A count of 32 bits of things that have `atLeast` bytes each.
    mutating func count(_ what: String, limit: Int, atLeast: Int) throws(EngineError) -> Int {
        let count = try number(UInt32.self)
        guard count <= limit, Int(count) * atLeast <= rest.count else { throw corrupt("\(count) \(what)") }
        return Int(count)
    }

    mutating func counted(_ what: String, limit: Int) throws(EngineError) -> [UInt8] {
        Array(try take(try count("bytes of \(what)", limit: limit, atLeast: 1)))
    }

    /// Throws unless everything was read.
    func end() throws(EngineError) { if !rest.isEmpty { throw corrupt("\(rest.count) bytes too many") } }

    func corrupt(_ reason: String) -> EngineError {
        EngineError(.corrupt, "the device state is wrong: \(reason)", remedy: "Use another checkpoint.", place: place)
    }

    private mutating func take(_ count: Int) throws(EngineError) -> ArraySlice<UInt8> {
        guard count <= rest.count else { throw corrupt("it ends too early") }
        defer { rest = rest.dropFirst(count) }
        return rest.prefix(count)
    }
}
