#include "cpagecodec.h"

#include <stdint.h>
#include <string.h>
#include <xxhash.h>
#if defined(__x86_64__)
#include <xxh_x86dispatch.h>
#endif

void *ckpagecodec_scan_hash128(void *result, const void *bytes, size_t length, unsigned flags)
{
    (void)flags;
    XXH128_hash_t hash = XXH3_128bits(bytes, length);
    uint64_t halves[2] = {hash.low64, hash.high64};
    return memcpy(result, halves, sizeof halves);
}

// Most pages are settled by their first word; after that, comparing the range with itself shifted by
// one chunk lets the C library use the widest vectors of the machine.
bool ckpagecodec_is_zero(const void *bytes, size_t length)
{
    const unsigned char *p = bytes;
    if (length < sizeof(uint64_t)) {
        for (size_t i = 0; i < length; i++) {
            if (p[i] != 0) return false;
        }
        return true;
    }
    uint64_t first;
    memcpy(&first, p, sizeof first);
    return first == 0 && memcmp(p, p + sizeof first, length - sizeof first) == 0;
}
