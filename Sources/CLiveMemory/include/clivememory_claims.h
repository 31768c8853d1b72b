/* Who copies a page: the fault's server or the walk over all pages. One byte for each page. */
#ifndef CLIVEMEMORY_CLAIMS_H
#define CLIVEMEMORY_CLAIMS_H

#include <stdbool.h>
#include <stdint.h>

enum { CK_UNCLAIMED = 0, CK_CLAIMED = 1, CK_SETTLED = 2 };

/* True for the one caller that may copy the page; it settles it afterwards. */
static inline bool ck_claim(uint8_t *state) {
    uint8_t expected = CK_UNCLAIMED;
    return __atomic_compare_exchange_n(state, &expected, CK_CLAIMED, false, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}

/* The copy is complete: everybody who sees that may use it, and release the page. */
static inline void ck_settle(uint8_t *state) { __atomic_store_n(state, CK_SETTLED, __ATOMIC_RELEASE); }

static inline bool ck_is_settled(const uint8_t *state) { return __atomic_load_n(state, __ATOMIC_ACQUIRE) == CK_SETTLED; }

static inline bool ck_is_unclaimed(const uint8_t *state) { return __atomic_load_n(state, __ATOMIC_ACQUIRE) == CK_UNCLAIMED; }

#endif
