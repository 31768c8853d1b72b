// Byte scans that must run at memory speed in debug builds too, where Swift loops don't.
#ifndef CPAGECODEC_H
#define CPAGECODEC_H

#include <stdbool.h>
#include <stddef.h>

/// Whether all `length` bytes at `bytes` are zero. Any alignment, any length (0: true). Stops at the
/// first chunk that is not zero; reads nothing outside the range.
bool ckpagecodec_is_zero(const void *bytes, size_t length);

/// Leaves the XXH3 hash with 128 bits and seed 0 of `length` bytes in the 16 bytes at `result`, low half first. Owns nothing
/// and touches nothing else, so that it may be abandoned in the middle. `flags` is not used.
void *ckpagecodec_scan_hash128(void *result, const void *bytes, size_t length, unsigned flags);

#endif
