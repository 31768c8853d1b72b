// What a guest asks of its devices.
//
// Invariant: a request names places, never pointers: it can be kept, compared and saved.

import Units

/// One transfer between a guest's memory and a device, or a flush.
public struct GuestRequest: Sendable, Equatable {
    public enum Operation: UInt8, Sendable {
        case read = 1
        case write = 2
        /// Everything that was written before it is to survive the loss of power when it is done.
        case flush = 3
    }

    public var id: RequestID
    public var operation: Operation
    public var device: DeviceIndex
    /// A multiple of the device's `blockLength`, as is `byteLength`. Both 0 for a flush.
    public var offset: DeviceOffset
    public var byteLength: ByteCount
    /// Where in the guest's memory: what is written is taken from there when the request is issued, what was read is put there before
    /// the guest hears of it.
    public var address: GuestAddress
    /// Who is told when it is finished.
    public var processor: ProcessorIndex

    public init(
        id: RequestID, _ operation: Operation, device: DeviceIndex, offset: DeviceOffset, byteLength: ByteCount, address: GuestAddress,
        processor: ProcessorIndex
    ) {
        self.id = id
        self.operation = operation
        self.device = device
        self.offset = offset
        self.byteLength = byteLength
        self.address = address
        self.processor = processor
    }

    /// Whether two requests have bytes of the device in common.
    func overlaps(_ other: GuestRequest) -> Bool {
        device == other.device && offset < other.offset + other.byteLength && other.offset < offset + byteLength
    }

    /// Whether a read asks for exactly the bytes that another one asks for.
    func readsTheSame(as other: GuestRequest) -> Bool {
        operation == .read && other.operation == .read && device == other.device && offset == other.offset && byteLength == other.byteLength
    }
}
