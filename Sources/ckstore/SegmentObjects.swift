// Segments as JSON and as text.
//
// Invariant: conversions only.

import CheckpointStore
import StoreFormat
import Units

/// The segments of one class.
struct ClassObject: Encodable {
    var name: String
    var segmentCount: Int
    var liveBytes: UInt64
    var deadBytes: UInt64
    var unwrittenBytes: UInt64
    /// Segments with so much dead space that compacting them is worth while.
    var mostlyDeadSegments: Int

    init(_ info: SegmentClassInfo) {
        name = info.segmentClass.description
        segmentCount = info.segmentCount
        liveBytes = info.liveBytes.rawValue
        deadBytes = info.deadBytes.rawValue
        unwrittenBytes = info.unwrittenBytes.rawValue
        mostlyDeadSegments = info.mostlyDeadSegments
    }

    static func table(_ classes: [ClassObject]) -> String {
        var table = Table(columns: [
            ("CLASS", .left), ("SEGMENTS", .right), ("LIVE", .right), ("DEAD", .right), ("NOT WRITTEN", .right), ("LIVING", .right),
        ])
        table.rows = classes.map { one in
            [
                one.name, "\(one.segmentCount)", readable(ByteCount(one.liveBytes)), readable(ByteCount(one.deadBytes)),
                readable(ByteCount(one.unwrittenBytes)), living(one.liveBytes, of: one.liveBytes + one.deadBytes),
            ]
        }
        return table.text
    }
}

/// One segment in use.
struct SegmentObject: Encodable {
    var segment: UInt64
    var segmentClass: String
    var committedBytes: UInt64
    var liveBytes: UInt64
    var deadBytes: UInt64
    /// The checkpoint that wrote there last, by its id; absent for the catalog.
    var lastWriter: String?
    /// The generation that did; absent for others than the catalog.
    var lastGeneration: UInt64?

    init(_ info: SegmentInfo) {
        segment = info.segment.rawValue
        segmentClass = info.segmentClass.description
        committedBytes = info.committedBytes.rawValue
        liveBytes = info.liveBytes.rawValue
        deadBytes = info.deadBytes.rawValue
        lastWriter = info.lastWriter?.description
        lastGeneration = info.lastGeneration?.rawValue
    }

    /// Empty when there is none.
    static func table(_ segments: [SegmentObject], heading: String? = nil) -> String {
        guard !segments.isEmpty else { return "" }
        var table = Table(columns: [
            ("SEGMENT", .right), ("CLASS", .left), ("WRITTEN", .right), ("LIVE", .right), ("DEAD", .right), ("LIVING", .right),
            ("LAST WRITER", .left),
        ])
        table.rows = segments.map { one in
            [
                "\(one.segment)", one.segmentClass, readable(ByteCount(one.committedBytes)), readable(ByteCount(one.liveBytes)),
                readable(ByteCount(one.deadBytes)), living(one.liveBytes, of: one.committedBytes),
                one.lastWriter ?? one.lastGeneration.map { "generation \($0)" } ?? "-",
            ]
        }
        return "\n" + (heading.map { "\($0):\n" } ?? "") + table.text
    }
}

/// What compacting would give back, as an estimate.
struct CompactionObject: Encodable {
    var victimSegments: Int
    var movedBytes: UInt64
    var gainedSegments: Int
    var gainedBytes: UInt64

    init(_ estimate: CompactionEstimate) {
        victimSegments = estimate.victimSegments
        movedBytes = estimate.movedBytes.rawValue
        gainedSegments = estimate.gainedSegments
        gainedBytes = estimate.gainedBytes.rawValue
    }

    var text: String {
        guard gainedSegments > 0 else { return "would give back nothing" }
        return "would give back about \(readable(ByteCount(gainedBytes))), moving \(readable(ByteCount(movedBytes))) out of "
            + counted(victimSegments, "segment")
    }
}

/// "97 %".
private func living(_ live: UInt64, of written: UInt64) -> String {
    written == 0 ? "-" : "\(Int((Double(live) * 100 / Double(written)).rounded())) %"
}
