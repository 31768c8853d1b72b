// Files and folders that somebody has open, by their handles.
//
// Invariants:
// - A handle is good from the reply that gives it out until it is closed, and never given out twice.
// - All handles of one region share one `OpenRegion`, which goes with the last of them.

import Threading

/// What a handle stands for.
enum OpenFile: Sendable {
    case region(OpenRegion)
    /// A file whose bytes are at hand.
    case bytes([UInt8])
    /// A folder's entries as they were when it was opened.
    case listing([FolderEntry])
}

/// Everything that is open. Thread-safe.
final class OpenFiles: Sendable {
    private struct State {
        var files: [UInt64: OpenFile] = [:]
        var regions: [Inode: (region: OpenRegion, users: Int)] = [:]
        var last: UInt64 = 0
    }
    private let state = Lock(State())

    func add(_ file: OpenFile) -> UInt64 { state.withLock { Self.add(file, &$0) } }

    /// Opens a region: one that is open already, or else the one that `make` makes.
    func addRegion(_ inode: Inode, _ make: () -> OpenRegion) -> UInt64 {
        state.withLock { state in
            let region = state.regions[inode]?.region ?? make()
            state.regions[inode] = (region, (state.regions[inode]?.users ?? 0) + 1)
            return Self.add(.region(region), &state)
        }
    }

    private static func add(_ file: OpenFile, _ state: inout State) -> UInt64 {
        state.last += 1
        state.files[state.last] = file
        return state.last
    }

    subscript(handle: UInt64) -> OpenFile? { state.withLock { $0.files[handle] } }

    func close(_ handle: UInt64) {
        let last = state.withLock { state -> OpenRegion? in
            guard case .region(let region) = state.files.removeValue(forKey: handle), let entry = state.regions[region.inode] else {
                return nil
            }
            guard entry.users == 1 else {
                state.regions[region.inode] = (entry.region, entry.users - 1)
                return nil
            }
            state.regions[region.inode] = nil
            return region
        }
        last?.close()
    }
}
