// What the six strategies have in common, and what their tests may change about them.
//
// Invariants:
// - `firstWrite` is called before the write happens, once for each unit and epoch, and never at the same time as a commit.
// - Whatever a strategy throws, and wherever a step throws, its checkpoint afterwards is the old one or the new one, whole.

import CheckpointCore
import MachineMemory
import Units

/// What becomes of a first write.
package enum FirstWrite: Sendable {
    /// It is noted, and whatever it destroys is kept: it may happen.
    case noted
    /// There is no room to note it: it waits for a checkpoint.
    case noRoom
}

/// One strategy at work on one memory. Checkpoints and rollbacks come one at a time; `firstWrite` comes on other threads.
package protocol RollbackStrategy: AnyObject, Sendable {
    /// Notes the first write of this epoch to a unit of memory. The caller holds the lock of `FirstWrites`: nothing of that may be called.
    func firstWrite(_ unit: Range<PageIndex>) -> FirstWrite
    /// Makes what memory holds, and `state`, the checkpoint. Writers stand still.
    func checkpoint(_ state: [UInt8], _ writes: FirstWrites) throws(EngineError)
    /// Brings memory back to the checkpoint and returns the state of that. Writers stand still. After an error it is called again.
    func rollback(_ writes: FirstWrites) throws(EngineError) -> [UInt8]
    /// Waits until nothing of the last checkpoint is left to do. Throws why something could not be done.
    func settle() throws(EngineError)
    /// The memory it takes.
    func describe(_ statistics: inout RollbackStatistics)
    /// Ends threads and connections. What waits on `firstWrite`'s answers has ended by then.
    func close()
}

/// Places between two steps of a strategy where a fault may come.
package enum RollbackStep: String, Sendable, CaseIterable {
    /// Device state has been taken over; nothing has changed.
    case begun
    /// A piece has been copied to buffer or shadow, or sent, in the stop.
    case copied
    /// What was written is protected again.
    case protected
    /// The backup has been sent the end marker, and its answer has not been read.
    case marked
    /// The bits are clear and the log is not.
    case cleared
    /// The checkpoint stands in memory.
    case committed
    /// A piece has been copied in the background.
    case drained
    /// A piece of memory has been brought back.
    case restored
}

/// The rules that strategies keep, and a look at each of their steps. Tests break the rules to show that they are needed.
package protocol RollbackRules: Sendable {
    /// Called between two steps; what it throws is the fault that comes there.
    func step(_ step: RollbackStep) throws(EngineError)
    /// Whether a page that the shadow still has to get is copied before it is written [system D, 4].
    var copiesFirst: Bool { get }
    /// In which order a log of this many entries, the oldest first, is replayed [system D, 6].
    func replayOrder(entryCount: Int) -> [Int]
}

/// The rules as they are.
package struct StandardRollbackRules: RollbackRules {
    package init() {}
    package func step(_ step: RollbackStep) throws(EngineError) {}
    package var copiesFirst: Bool { true }
    package func replayOrder(entryCount: Int) -> [Int] { (0..<entryCount).reversed() }
}

/// What a strategy is made of.
package struct RollbackParts: Sendable {
    package var memory: GuestMemory
    package var options: RollbackOptions
    package var rules: any RollbackRules
    package var counters: RollbackCounters

    /// How many pages an epoch may write; all when nothing is said.
    var capacity: PageCount { min(options.capacity ?? memory.pageCount, memory.pageCount) }
}
