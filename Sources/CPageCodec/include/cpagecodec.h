// Byte scans that must run at memory speed in debug builds too, where Swift loops don't.
#ifndef CPAGECODEC_H
#define CPAGECODEC_H

#include <stdbool.h>
#include <stddef.h>

/// Whether all `length` bytes at `bytes` are zero. Any alignment, any length (0: true). Stops at the
/// first chunk that is not zero; reads nothing outside the range.
bool ckpagecodec_is_zero(const void *bytes, size_t length);

#endif
