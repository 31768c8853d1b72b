#include <xxhash.h>

// The variants that choose the widest vectors of the machine at run time exist for x86 only.
#if defined(__x86_64__)
#define XXH_DISPATCH_DISABLE_REPLACE
#include <xxh_x86dispatch.h>
#endif
