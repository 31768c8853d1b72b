// Saves that leave runs where they are, however empty they become.

import CheckpointStore

/// For tests of what half-empty runs are good for.
package struct NoRepacking: RepackingRules {
    package init() {}
    package func runsToMove(_ runs: [RunUse], newPages: Int, writesFullLeaf: Bool) -> [Int] { [] }
}
