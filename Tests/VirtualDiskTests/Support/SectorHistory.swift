// What sectors of a disk may hold after a power cut: what the last completed flush covered, or anything that was written since.
//
// Each write gives its sectors a version of their own, which fills them.

import Units
import VirtualDisks

struct SectorHistory: Sendable {
    /// For each sector, its versions with when they were written; the first is what was there at the start.
    private var versions: [[(version: UInt32, moment: Int)]]
    /// When flushes began and when they were acknowledged.
    private var flushes: [(began: Int, acknowledged: Int)] = []
    private var lastVersion: UInt32 = 0

    init(sectorCount: Int) { versions = Array(repeating: [(0, -1)], count: sectorCount) }

    /// The bytes of a new write to `sectors`. `moment` is when it begins.
    mutating func write(_ sectors: Range<Int>, at moment: Int) -> [UInt8] {
        lastVersion += 1
        for sector in sectors { versions[sector].append((lastVersion, moment)) }
        return sectors.flatMap { _ in Self.sector(lastVersion) }
    }

    mutating func flush(began: Int, acknowledged: Int) { flushes.append((began, acknowledged)) }

    /// Throws unless `content` may be there after a cut at `moment`.
    func check(_ content: [UInt8], at moment: Int) throws {
        let floor = flushes.filter { $0.acknowledged <= moment }.map(\.began).max() ?? -1
        for (sector, history) in versions.enumerated() {
            let bytes = Array(content[sector * sectorSize..<(sector + 1) * sectorSize])
            let flushed = history.last { $0.moment <= floor } ?? history[0]
            let allowed = [flushed.version] + history.filter { $0.moment > floor && $0.moment <= moment }.map(\.version)
            guard allowed.contains(where: { Self.sector($0) == bytes }) else {
                throw TestFailure("sector \(sector) starts with \(bytes[..<4]), not one of the versions \(allowed)")
            }
        }
    }

    /// What is there when nothing is lost.
    var newest: [UInt8] { versions.flatMap { Self.sector($0.last!.version) } }

    static func sector(_ version: UInt32) -> [UInt8] {
        (0..<sectorSize).map { UInt8(truncatingIfNeeded: version >> UInt32($0 % 4 * 8)) }
    }
}
