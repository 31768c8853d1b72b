// How a connection to a backup begins. Formats/ROLLBACK.md 6.
//
// Invariant: what decodes speaks of sizes that were checked.

import CheckpointCore
import Units

/// Who keeps checkpoints in a backup: random, another one for each process that does so.
public struct BackupIdentity: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    public static func random() -> BackupIdentity { BackupIdentity(UInt64.random(in: 1 ... .max)) }
}

/// The payload of `hello`.
struct BackupHello {
    /// What the sender wants to be.
    enum Role: UInt32 {
        /// The process that has kept its checkpoints there so far, or the first one.
        case primary = 1
        /// The process that goes on where that one has ended.
        case successor = 2
    }

    var role: Role
    var identity: BackupIdentity
    /// Of its memory; zero for a successor that does not know it yet.
    var byteLength: ByteCount
    var name: String

    static let version: UInt32 = 1
    private static let fixedBytes = 32
    private static let longestName = 255

    func encoded() -> [UInt8] {
        let name = [UInt8](name.utf8.prefix(Self.longestName))
        let bytes = AlignedBytes(count: Self.fixedBytes + name.count)
        bytes.put(Self.version, at: 0)
        bytes.put(role.rawValue, at: 4)
        bytes.put(identity.rawValue, at: 8)
        bytes.put(byteLength.rawValue, at: 16)
        bytes.put(UInt16(name.count), at: 24)
        bytes.put(name, at: Self.fixedBytes)
        return bytes.copy(0..<Self.fixedBytes + name.count)
    }

    init(_ role: Role, _ identity: BackupIdentity, byteLength: ByteCount, name: String) {
        self.role = role
        self.identity = identity
        self.byteLength = byteLength
        self.name = name
    }

    /// - Throws: `.protocolViolation`, `.unsupported`.
    init(_ payload: [UInt8], place: String) throws(EngineError) {
        guard payload.count >= Self.fixedBytes else { throw BackupFrame.violation("a hello of \(payload.count) bytes", place) }
        let bytes = AlignedBytes(copying: payload)
        guard bytes.u32(0) == Self.version else {
            throw EngineError(.unsupported, "the other side speaks version \(bytes.u32(0))", remedy: "Use one version of ckstore.", place: place)
        }
        let length = Int(bytes.u16(24))
        guard let role = Role(rawValue: bytes.u32(4)), length <= Self.longestName, payload.count == Self.fixedBytes + length,
            bytes.u64(8) != 0
        else {
            throw BackupFrame.violation("a hello that makes no sense", place)
        }
        self.init(
            role, BackupIdentity(bytes.u64(8)), byteLength: ByteCount(bytes.u64(16)),
            name: String(decoding: bytes.copy(Self.fixedBytes..<payload.count), as: UTF8.self))
    }
}

/// The payload of `welcome`; the frame's epoch is that of the last checkpoint.
struct BackupWelcome {
    /// How many pages can be staged.
    var capacity: PageCount
    /// Of the memory whose checkpoint it has; zero: none.
    var byteLength: ByteCount
    /// Whether all pages are zero as long as nothing is put.
    var isZero: Bool
    var state: [UInt8]

    private static let fixedBytes = 32

    func encoded() -> [UInt8] {
        let bytes = AlignedBytes(count: Self.fixedBytes)
        bytes.put(capacity.rawValue, at: 0)
        bytes.put(byteLength.rawValue, at: 8)
        bytes.put(UInt32(isZero ? 1 : 0), at: 16)
        return bytes.copy(0..<Self.fixedBytes) + state
    }

    init(capacity: PageCount, byteLength: ByteCount, isZero: Bool, state: [UInt8]) {
        self.capacity = capacity
        self.byteLength = byteLength
        self.isZero = isZero
        self.state = state
    }

    /// - Throws: `.protocolViolation`.
    init(_ payload: [UInt8], place: String) throws(EngineError) {
        guard payload.count >= Self.fixedBytes else { throw BackupFrame.violation("a welcome of \(payload.count) bytes", place) }
        let bytes = AlignedBytes(copying: payload)
        guard bytes.u64(0) < 1 << 40, bytes.u64(8) < 1 << 47, bytes.u64(8) % UInt64(pageSize) == 0 else {
            throw BackupFrame.violation("a welcome that makes no sense", place)
        }
        self.init(
            capacity: PageCount(bytes.u64(0)), byteLength: ByteCount(bytes.u64(8)), isZero: bytes.u32(16) == 1,
            state: [UInt8](payload[Self.fixedBytes...]))
    }
}
