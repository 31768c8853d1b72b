// What the writer that gets killed writes.
//
// Invariant: a checkpoint's content depends on its name alone, so that whoever checks it needs no other knowledge.

import FaultHarness
import Units

package enum KilledWriter {
    /// In place of a prefix: one that compacts.
    package static let compactor = "compactor"
    /// In place of a prefix, with one of `mixers` behind it: one that does everything to checkpoints of that prefix.
    package static let mixer = "mixer-"
    /// The prefixes of those that do everything, each of one letter that no other name begins with.
    package static let mixers = ["p", "q", "r"]
    /// Pages of a checkpoint.
    package static let pages = 64

    /// The content of the checkpoint called `name`, a prefix and a number: a few pages differ from the number before.
    package static func content(_ name: String) -> [UInt8] {
        let serial = UInt64(name.drop { !$0.isNumber }) ?? 0
        let prefix = UInt64(name.utf8.first ?? 0)
        return (0..<UInt64(pages)).flatMap { page in
            // The last number at which this page changed.
            let version = serial - (serial + page) % 9 % (serial + 1)
            var random = SeededGenerator(seed: prefix, page, version)
            return makePage(&random)
        }
    }
}
