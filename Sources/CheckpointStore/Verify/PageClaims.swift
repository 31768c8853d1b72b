// What leaves say of a run: which page of the span stands at each of its places.
//
// Invariant: exact, in 20 bytes: verification keeps one for each run of a store.

import Units

/// The pages at the places of a run, as far as leaves list them. A value of 9 bits for each of 16 places.
struct PageClaims: Sendable {
    private var low = SIMD16<UInt8>()
    private var high = UInt16(0)
    private(set) var places = UInt16(0)

    init() {}

    /// What one leaf lists.
    init(_ listed: ArraySlice<ListedPage>) {
        for one in listed {
            low[one.place] = UInt8(truncatingIfNeeded: one.page)
            high |= UInt16(one.page >> 8) << UInt16(one.place)
            places |= 1 << UInt16(one.place)
        }
    }

    /// Whether both name the same page wherever `other` names one. False where this names none.
    func agrees(with other: PageClaims) -> Bool {
        guard other.places & ~places == 0, (high ^ other.high) & other.places == 0 else { return false }
        var rest = other.places
        while rest != 0 {
            let place = rest.trailingZeroBitCount
            guard low[place] == other.low[place] else { return false }
            rest &= rest - 1
        }
        return true
    }

    /// Adds what `other` names; both agree where both name a page.
    mutating func formUnion(_ other: PageClaims) {
        var rest = other.places & ~places
        high |= other.high
        places |= other.places
        while rest != 0 {
            let place = rest.trailingZeroBitCount
            low[place] = other.low[place]
            rest &= rest - 1
        }
    }
}
