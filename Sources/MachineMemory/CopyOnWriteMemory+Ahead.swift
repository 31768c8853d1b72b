// Copying ahead of the store: where pages are given free once they are safe, memory for their copies is all that keeps writers waiting.

import CheckpointCore
import Threading
import Units

extension CopyOnWriteMemory {
    /// Copied and released at once: few calls, and a short wait for the faults of others.
    private static let piece = 64

    /// Starts to copy what is wanted, in order, as far as there is room. Ends by itself, and with the checkpoint.
    func startCopyingAhead() {
        guard !options.keepsProtection, memory.pages != .huge else { return }
        let thread = PlainThread { [self] in copyAhead() }
        // Without a thread the savers and the faults copy everything.
        guard let thread else { return }
        copier.withLock { $0 = thread }
    }

    /// Waits for the end of the copying; the checkpoint has ended.
    func joinCopier() {
        let thread = copier.withLock { thread in
            defer { thread = nil }
            return thread
        }
        thread?.join()
    }

    private func copyAhead() {
        let trap = requireTrap()
        for range in wantedPages.ranges {
            let all = units.units(of: range)
            for start in stride(from: all.lowerBound, to: all.upperBound, by: Self.piece) {
                let goesOn = state.withLock { state -> Bool in
                    guard state.phase == .copying else { return false }
                    return secure(start..<min(start + Self.piece, all.upperBound), trap, &state)
                }
                guard goesOn else { return }
            }
        }
    }
}
