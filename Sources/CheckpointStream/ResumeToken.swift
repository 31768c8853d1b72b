// How a sender is told where to go on: a word that people can copy.
//
// Invariant: a word that was copied wrongly is refused.

import PageCodec
import Units

/// What has come of a checkpoint, for the sender to go on from there.
public struct ResumeToken: Sendable, Hashable, CustomStringConvertible {
    /// The checkpoint that is being received.
    public var checkpoint: CheckpointID
    /// What it is a change of; nil: it is sent in full.
    public var base: CheckpointID?
    /// Everything in front of this is there.
    public var position: StreamPosition

    public init(checkpoint: CheckpointID, base: CheckpointID?, position: StreamPosition) {
        self.checkpoint = checkpoint
        self.base = base
        self.position = position
    }

    private static let prefix = "ck1"

    private var fields: String {
        "\(Self.prefix)-\(checkpoint)-\(base?.description ?? "0")-\(position.region)-\(position.page)"
    }

    private static func check(_ fields: String) -> String {
        let hash = unsafe hash128(Array(fields.utf8).span.bytes)
        return String(hexadecimal(hash.low).suffix(8))
    }

    /// The word: `ck1-CHECKPOINT-BASE-REGION-PAGE-CHECK`.
    public var description: String { "\(fields)-\(Self.check(fields))" }

    /// Parses the form of `description`; nil for anything else.
    public init?(_ text: String) {
        let parts = text.split(separator: "-", omittingEmptySubsequences: false).map(String.init)
        guard parts.count == 6, let checkpoint = CheckpointID(hex: parts[1]), parts[2] == "0" || CheckpointID(hex: parts[2]) != nil,
            let region = Int(parts[3]), (0...65535).contains(region), let page = UInt64(parts[4])
        else { return nil }
        self.init(
            checkpoint: checkpoint, base: CheckpointID(hex: parts[2]), position: StreamPosition(region: region, page: PageIndex(page)))
        guard description == text else { return nil }
    }
}
