// From what the store says of itself to the figures of a report.
//
// Invariant: conversions only; nothing is read.

import CheckpointStore
import Media
import StoreFormat
import Units

extension StoreFigures {
    init(_ info: StoreInfo, sizeBytes: ByteCount) {
        self.init(
            medium: info.medium, kind: info.traits.kind.rawValue, uuid: info.uuid.description, generation: info.generation.rawValue,
            features: info.features, checkpointCount: info.checkpointCount, sizeBytes: sizeBytes.rawValue,
            segmentBytes: UInt64(info.geometry.segmentSize), segmentCount: Int(info.geometry.segmentCount),
            usedSegments: info.segments.count, reserveSegments: info.reserveSegments, logicalBytes: info.logicalBytes.rawValue,
            nonZeroBytes: info.nonZeroBytes.rawValue, runBytes: info.runBytes.rawValue, indexBytes: info.indexBytes.rawValue,
            catalogBytes: info.catalogBytes.rawValue, sharedBytes: info.sharedBytes.rawValue, deadBytes: info.deadBytes.rawValue,
            unwrittenBytes: info.classes.reduce(0) { $0 + $1.unwrittenBytes.rawValue }, freeBytes: info.freeBytes.rawValue,
            reserveBytes: info.reserveBytes.rawValue, compactionGainBytes: info.compaction.gainedBytes.rawValue)
    }
}

extension CheckpointFigures {
    init(_ info: CheckpointInfo, parent: Int?, depth: Int, indexBytes: Int, regions: [RegionFigures]) {
        self.init(
            id: info.id, name: info.name, parent: parent, depth: depth, createdMilliseconds: info.createdNanoseconds / 1_000_000,
            generation: info.generation.rawValue, labels: info.labels.map { Label(key: $0.key, value: $0.value) },
            group: info.groupID.map { CheckpointID($0).description },
            logicalBytes: info.regions.lazy.map(\.byteLength).saturatingSum.rawValue, storedBytes: info.storedBytes.rawValue, indexBytes: UInt64(indexBytes), newPages: info.newPages.rawValue, regions: regions)
    }
}

extension SegmentMap {
    /// - Parameter checkpoints: the places of those that are listed.
    init(_ info: StoreInfo, checkpoints: [CheckpointID: Int]) {
        let count = Int(info.geometry.segmentCount)
        let perCell = (count - 1) / ReportLimits.segmentCells + 1
        let cells = (count - 1) / perCell + 1
        self.init(segmentsPerCell: perCell)
        classes = Array(repeating: 0, count: cells)
        committedBytes = Array(repeating: 0, count: cells)
        liveBytes = committedBytes
        writers = Array(repeating: -1, count: cells)
        var largest = committedBytes
        for segment in info.segments {
            let cell = segment.segment.int / perCell
            committedBytes[cell] += segment.committedBytes.rawValue
            liveBytes[cell] += segment.liveBytes.rawValue
            guard classes[cell] == 0 || segment.committedBytes.rawValue > largest[cell] else { continue }
            largest[cell] = segment.committedBytes.rawValue
            classes[cell] = Int(segment.segmentClass.rawValue)
            writers[cell] = segment.lastWriter.flatMap { checkpoints[$0] } ?? -1
        }
    }
}
