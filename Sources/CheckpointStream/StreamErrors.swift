// What a stream can be refused for: codes of its own beside those of the store.
//
// Invariant: whoever refuses a stream leaves nothing of it but what had become durable before as a part that can be gone on from, and
// says so.

import CheckpointStore
import StoreFormat
import Units

extension StoreError.Code {
    /// The stream changes a checkpoint that the store does not have, though it has others from there: an earlier stream is missing.
    public static let outOfOrder = StoreError.Code(rawValue: "out-of-order")
    /// The stream changes a checkpoint that the store does not have, as nothing else from there.
    public static let foreign = StoreError.Code(rawValue: "foreign")
    /// The store has the checkpoint already.
    public static let duplicate = StoreError.Code(rawValue: "duplicate")
    /// The bytes are not those that were sent: changed, missing, swapped or come twice.
    public static let damagedStream = StoreError.Code(rawValue: "damaged-stream")
    /// The stream ended before its end.
    public static let cutStream = StoreError.Code(rawValue: "cut-stream")
    /// What came is no stream of checkpoints.
    public static let notAStream = StoreError.Code(rawValue: "not-a-stream")
}

extension StoreError {
    static func damagedStream(_ reason: String) -> StoreError {
        StoreError(.damagedStream, "the stream is damaged: \(reason)", remedy: "Send it again.")
    }

    static func damagedStream(_ error: FormatError) -> StoreError { damagedStream("\(error)") }

    static func cutStream() -> StoreError {
        StoreError(.cutStream, "the stream ended before its end", remedy: "See what the sender says, and send it again.")
    }
}

/// Runs a decoder and turns its error into a stream's.
func decoding<T>(_ body: () throws(FormatError) -> T) throws(StoreError) -> T {
    do { return try body() } catch { throw .damagedStream(error) }
}
