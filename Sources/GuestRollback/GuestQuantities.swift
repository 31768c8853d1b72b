// What guests and their devices count and address.
//
// Invariant: places in a guest's memory and places on a device are of different kinds and can't be mixed up.

import Units

/// A byte's place in a guest's memory.
public struct GuestAddress: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public static func + (a: GuestAddress, b: ByteCount) -> GuestAddress { GuestAddress(a.rawValue + b.rawValue) }
    /// The page that holds it.
    @inlinable public var page: PageIndex { PageIndex(rawValue / UInt64(pageSize)) }
}

/// A byte's place on a device.
public struct DeviceOffset: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
    @inlinable public static func + (a: DeviceOffset, b: ByteCount) -> DeviceOffset { DeviceOffset(a.rawValue + b.rawValue) }
}

/// What a guest knows a request by. The guest chooses it; no two of its unfinished requests have the same.
public struct RequestID: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// One of a guest's processors, by its place in the list that the guest was made with.
public struct ProcessorIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}

/// One of a guest's devices, by its place in the list that the guest was made with.
public struct DeviceIndex: Quantity {
    public var rawValue: UInt64
    @inlinable public init(_ rawValue: UInt64) { self.rawValue = rawValue }
}
