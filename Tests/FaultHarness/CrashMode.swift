// The ways in which a power cut treats writes that no flush has covered.

/// Which unflushed writes have reached the medium when power is cut.
public enum CrashMode: String, CaseIterable, Sendable {
    /// None of them.
    case none
    /// All of them.
    case all
    /// The oldest few, for every number of them.
    case prefix
    /// All but one, for each.
    case dropOne
    /// A single one, for each.
    case keepOne
    /// Every combination, where there are at most `everySubsetLimit` of them; no images elsewhere.
    case everySubset
    /// A random combination: any order of arrival.
    case randomSubset
    /// Each 512-byte sector of each write on its own.
    case tornSectors
    /// Each 8-byte word of each write of up to 4 KiB on its own; sectors of longer ones.
    case tornWords
    /// 8-byte stores reach persistent memory when their 64-byte line is evicted, which can be at any
    /// time: per line, some first stores have arrived and the rest has not.
    case persistentMemory

    /// The most unflushed writes of which `everySubset` tries every combination.
    public static let everySubsetLimit = 8

    /// True when images differ by chance, so that there is no end to them.
    public var isRandom: Bool {
        switch self {
        case .none, .all, .prefix, .dropOne, .keepOne, .everySubset: false
        case .randomSubset, .tornSectors, .tornWords, .persistentMemory: true
        }
    }

    /// How many images the mode has at a point with this many unflushed writes; for a random mode
    /// `randomCount`, where there is anything to choose at all.
    public func imageCount(unflushed: Int, randomCount: Int) -> Int {
        switch self {
        case .none: 1
        case .all: unflushed > 0 ? 1 : 0
        case .prefix: max(0, unflushed - 1)
        case .dropOne, .keepOne: unflushed > 1 ? unflushed : 0
        case .everySubset: unflushed > 0 && unflushed <= CrashMode.everySubsetLimit ? 1 << unflushed : 0
        case .randomSubset, .tornSectors, .tornWords, .persistentMemory: unflushed > 0 ? randomCount : 0
        }
    }
}
