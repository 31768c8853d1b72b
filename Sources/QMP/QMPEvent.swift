// Events, and the ring that keeps the newest of them.
//
// Invariant: sequence numbers start at 1 and have no gaps; the ring holds an unbroken run of them that ends
// with the newest.

/// Something that QEMU told without being asked.
public struct QMPEvent: Sendable {
    /// What happened: "STOP", "MIGRATION".
    public var name: String
    /// What belongs to it; an empty object when there is nothing.
    public var data: JSONValue
    /// When, in microseconds since 1970 by QEMU's clock; 0 when QEMU could not read its clock.
    public var timestampMicroseconds: Int64
    /// Its number on this connection, counted from 1.
    public var sequence: Int

    /// The event that a message is; nil when it has no event's form.
    init?(message: JSONValue, sequence: Int) {
        guard let name = message["event"]?.string, let time = message["timestamp"],
            let seconds = time["seconds"]?.integer, let microseconds = time["microseconds"]?.integer,
            (-1..<1_000_000).contains(microseconds), (-1..<1 << 42).contains(seconds)
        else { return nil }
        self.name = name
        data = message["data"] ?? .object([:])
        timestampMicroseconds = seconds < 0 || microseconds < 0 ? 0 : seconds * 1_000_000 + microseconds
        self.sequence = sequence
    }
}

/// The newest events.
struct EventRing: Sendable {
    static let capacity = 10_000
    private var events: [QMPEvent] = []
    /// Where in `events` the oldest is, once it is full.
    private var first = 0
    /// The newest event's number.
    private(set) var last = 0

    mutating func append(_ event: QMPEvent) {
        precondition(event.sequence == last + 1)
        last = event.sequence
        if events.count < Self.capacity {
            events.append(event)
        } else {
            events[first] = event
            first = (first + 1) % Self.capacity
        }
    }

    /// The number of the oldest event that is kept.
    var oldest: Int { last - events.count + 1 }

    /// What is kept of the events after number `sequence`, in order.
    func after(_ sequence: Int) -> [QMPEvent] {
        (max(sequence + 1, oldest)..<max(sequence, last) + 1).map { events[(first + $0 - oldest) % events.count] }
    }
}
