// Telling a right guess from a wrong one: the pointer's checksum is that of the bytes that were committed.
//
// Invariant: what is accepted has length and checksum of the pointer, so that it is what was written, however it was arrived at.

import StoreFormat
import Units

/// Judges guesses at one block, a bounded number of them.
struct GuessJudge {
    let pointer: BlockPointer
    /// Guesses that may still be tried.
    private(set) var left: Int
    private let acceptsAny: Bool

    /// - Parameter acceptsAny: the first guess of the right length is taken: a defect, for tests.
    init(_ pointer: BlockPointer, most: Int, acceptsAny: Bool) {
        self.pointer = pointer
        left = most
        self.acceptsAny = acceptsAny
    }

    var birth: BlockBirth { pointer.birth }
    var length: Int { Int(pointer.storedLength) }
    var isExhausted: Bool { left <= 0 }

    /// A block that was guessed, encoded by `encode` when its length is right. Nil when it is another.
    mutating func judge(length: Int, _ encode: () -> [UInt8]) -> [UInt8]? {
        left -= 1
        guard length == self.length else { return nil }
        let bytes = encode()
        let isRight = unsafe acceptsAny || (try? Block.verify(bytes.span.bytes, pointer: pointer)) != nil
        return isRight ? bytes : nil
    }
}

/// Choosing some of many, few first: what differs between the best guess and the truth is seldom much.
enum Choices {
    /// Calls `body` with every set of `count` numbers below `total`, ascending, until it returns something or is `exhausted`.
    static func first<T>(_ count: Int, of total: Int, while goesOn: () -> Bool, _ body: ([Int]) -> T?) -> T? {
        guard count <= total else { return nil }
        var chosen = Array(0..<count)
        while goesOn() {
            if let result = body(chosen) { return result }
            // The last one that can still move up, and all behind it right after it.
            guard let place = chosen.indices.last(where: { chosen[$0] < total - count + $0 }) else { return nil }
            chosen[place] += 1
            for next in chosen.indices.dropFirst(place + 1) { chosen[next] = chosen[next - 1] + 1 }
        }
        return nil
    }
}
