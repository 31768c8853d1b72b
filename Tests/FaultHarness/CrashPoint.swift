// A place in a recording where power may be cut, and the devices that such a cut can leave behind.
//
// Invariants:
// - An image is decided by (point, mode, ordinal, seed) alone, so that each can be made again by itself.
// - Making an image costs what its unflushed writes touch; the durable content is shared.

import Media
import Units

/// What a power cut left behind.
public struct CrashImage: Sendable {
    /// A new device with that content, all of it durable.
    public var device: SimulatedDevice
    /// How many events of the recording came before the cut.
    public var point: Int
    /// How unflushed writes were treated.
    public var mode: CrashMode
    /// Which image of that mode, from 0.
    public var ordinal: Int
    /// The seed of its random choices.
    public var seed: UInt64
    /// The marks that were made before the cut, oldest first.
    public var marks: [String]
    /// Equal for images of one recording in which the same parts of the same writes have arrived.
    public var fingerprint: UInt64
}

/// The state of a recording after some of its events.
public struct CrashPoint: Sendable {
    /// How many events have happened.
    public internal(set) var index: Int
    /// The marks among them, oldest first.
    public internal(set) var marks: [String]
    var power: PowerState
    let options: SimulatedDevice.Options

    /// How many changes no flush has covered.
    public var unflushedCount: Int { power.pending.count }

    /// One image. `ordinal` is below `mode.imageCount` of this point; random modes take any.
    public func image(_ mode: CrashMode, ordinal: Int = 0, seed: UInt64 = 0) -> CrashImage {
        var builder = CrashImageBuilder(
            power: power, generator: SeededGenerator(seed: seed, UInt64(index), UInt64(ordinal)))
        builder.build(mode, ordinal: ordinal)
        return CrashImage(
            device: SimulatedDevice(content: builder.content, size: builder.size, options: options), point: index,
            mode: mode, ordinal: ordinal, seed: seed, marks: marks, fingerprint: builder.fingerprint)
    }

    /// All images of a mode, or the first `randomCount` of a random one, made one by one as they are asked for.
    public func images(_ mode: CrashMode, seed: UInt64 = 0, randomCount: Int = 1) -> some Sequence<CrashImage> {
        (0..<mode.imageCount(unflushed: unflushedCount, randomCount: randomCount)).lazy.map { ordinal in
            image(mode, ordinal: ordinal, seed: seed)
        }
    }
}

/// Walks over the crash points of a recording. One pass costs what the recorded writes touch.
public struct CrashCursor: Sendable {
    /// The point that the cursor stands at; at first the one before all events.
    public private(set) var point: CrashPoint
    /// The recording.
    public let events: [DeviceEvent]

    init(origin: PowerState, events: [DeviceEvent], options: SimulatedDevice.Options) {
        self.events = events
        point = CrashPoint(index: 0, marks: [], power: origin, options: options)
    }

    /// Moves forward until `index` events have happened; never back.
    public mutating func advance(to index: Int) {
        precondition(index >= point.index && index <= events.count, "a cursor moves forward within its recording")
        while point.index < index {
            let event = events[point.index]
            point.power.apply(event)
            if case .mark(let text) = event.kind { point.marks.append(text) }
            point.index += 1
        }
    }
}

extension SimulatedDevice {
    /// A cursor over everything since the device was made or its log forgotten.
    public func crashCursor() -> CrashCursor {
        state.with { CrashCursor(origin: $0.origin, events: $0.log, options: $0.options) }
    }

    /// The images of one mode at one point. For many points, walk a `crashCursor` instead.
    public func crashImages(
        at index: Int, mode: CrashMode, seed: UInt64 = 0, randomCount: Int = 1
    ) -> some Sequence<CrashImage> {
        var cursor = crashCursor()
        cursor.advance(to: index)
        return cursor.point.images(mode, seed: seed, randomCount: randomCount)
    }

    /// What a power cut right now leaves behind.
    public func powerCut(_ mode: CrashMode, ordinal: Int = 0, seed: UInt64 = 0) -> CrashImage {
        state.with { state in
            CrashPoint(index: state.log.count, marks: state.log.marks, power: state.power, options: state.options)
        }.image(mode, ordinal: ordinal, seed: seed)
    }
}

extension [DeviceEvent] {
    /// The texts of the marks among them.
    public var marks: [String] {
        compactMap { if case .mark(let text) = $0.kind { text } else { nil } }
    }
}
