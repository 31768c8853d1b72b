// Where the store's locks lie in the lock space of its medium: section 9 of the format.

import Media
import StoreFormat
import Units

enum LockLayout {
    /// Held exclusively while a generation is being committed.
    static let commit = LockRange(start: 0)
    /// Held shared by every open handle; exclusively by whoever replaces or shrinks the store.
    static let presence = LockRange(start: 1)
    /// Held exclusively while space is being reclaimed: deleting, compacting, repairing. Taken before the commit lock.
    static let reclaim = LockRange(start: 3)
    private static let registrations: UInt64 = 1 << 40
    private static let claims: UInt64 = 1 << 41

    /// Held shared by those who read `generation`.
    static func registration(_ generation: Generation) -> LockRange {
        LockRange(start: registrations + generation.rawValue)
    }
    /// All registrations below `generation`, which is at least 1.
    static func registrations(below generation: Generation) -> LockRange {
        LockRange(start: registrations, count: generation.rawValue)
    }
    /// Held exclusively by the writer of `segment`.
    static func claim(_ segment: SegmentIndex) -> LockRange { LockRange(start: claims + segment.rawValue) }
    /// The claims of all of `segments`.
    static func claims(_ segments: Range<UInt32>) -> LockRange {
        LockRange(start: claims + UInt64(segments.lowerBound), count: UInt64(segments.count))
    }
}
