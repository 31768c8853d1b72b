// A real store for tests of live checkpoints.

import CheckpointCore
import StoreTesting

/// A store in a file, gone with this object.
final class LiveScratch: Sendable {
    let scratch: ScratchStore
    var data: StoreBackedDataStore { StoreBackedDataStore(scratch.store) }

    init() throws { scratch = try ScratchStore() }
}
