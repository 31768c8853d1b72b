// Power cuts that hit several media at one moment: an image and the overlays above it, each with writes of its own that no flush has covered.
//
// Invariant: a moment is one operation on one of the media; a cut at a moment comes behind it.

import FaultHarness
import Threading
import Units
import VirtualDisks

final class CrashRecording: Sendable {
    let devices: [SimulatedDevice]
    private let moments: Lock<[[Int]]>

    /// Records what happens from now on.
    init(_ devices: [SimulatedDevice]) {
        self.devices = devices
        for device in devices { device.forgetLog() }
        moments = Lock([devices.map { _ in 0 }])
    }

    /// How many moments there were: the number of the next one.
    var count: Int { moments.withLock { $0.count } }

    /// To be called after each operation on a medium.
    func note() { moments.withLock { $0.append(devices.map(\.logCount)) } }

    /// Calls `check` with what cuts leave behind: at every moment nothing and everything unflushed, and `randomCount` times a random part.
    /// Without `tearsSectors` a sector of 512 bytes arrives as a whole or not at all, as disks promise.
    func explore(
        seed: UInt64, randomCount: Int, tearsSectors: Bool = true,
        _ check: (_ moment: Int, _ left: [SimulatedDevice], _ number: Int) throws -> Void
    ) throws {
        var cursors = devices.map { $0.crashCursor() }
        var number = 0
        for (moment, indexes) in moments.withLock({ $0 }).enumerated() {
            for (device, index) in indexes.enumerated() { cursors[device].advance(to: index) }
            for attempt in 0..<2 + randomCount {
                number += 1
                var generator = SeededGenerator(seed: seed, UInt64(number))
                let left = cursors.map { cursor in
                    let mode: CrashMode
                    switch attempt {
                    case 0: mode = .none
                    case 1: mode = .all
                    default: mode = [.none, .all, .randomSubset, .tornSectors, .tornWords][generator.below(tearsSectors ? 5 : 4)]
                    }
                    let wanted = cursor.point.unflushedCount == 0 ? .none : mode
                    return cursor.point.image(wanted, ordinal: 0, seed: generator.next()).device
                }
                do { try check(moment, left, number) } catch {
                    throw TestFailure("\(error), after a cut at moment \(moment), image \(number), seed \(seed)")
                }
            }
        }
    }
}
