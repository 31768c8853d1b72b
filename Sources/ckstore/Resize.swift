// `ckstore resize`.

import ArgumentParser
import CheckpointStore
import Media
import Units

struct Resize: ParsableCommand {
    static let configuration = CommandConfiguration(
        abstract: "Make a store larger or smaller.",
        discussion: """
            A store can grow while it is in use. It can shrink when nobody else has it open and what lies behind the \
            new end is free; what is not is named. On a device the store grows into what the device has.

            Example:
              ckstore resize vm.ck 128G
            """)

    @OptionGroup var target: StoreArgument
    @Argument(help: "The new size.", transform: { try Size(parsing: $0) })
    var size: Size
    @OptionGroup var output: OutputOptions

    func run() throws {
        let store = try target.open(.readWrite)
        defer { store.close() }
        let before = store.geometry.segmentCount
        try store.resize(to: size.bytes)
        let geometry = store.geometry
        let result = Result(
            medium: store.medium.name, sizeBytes: store.medium.size.rawValue, segmentBytes: UInt64(geometry.segmentSize),
            segmentCount: UInt64(geometry.segmentCount), earlierSegmentCount: UInt64(before))
        try output.report(
            result,
            summary: "\(store.medium.name): \(readable(store.medium.size)), \(geometry.segmentCount) segments (before: \(before))\n")
    }

    private struct Result: Encodable {
        var medium: String
        var sizeBytes: UInt64
        var segmentBytes: UInt64
        var segmentCount: UInt64
        var earlierSegmentCount: UInt64
    }
}
