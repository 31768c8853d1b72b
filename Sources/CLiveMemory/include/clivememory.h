/* The memory of another process: userfaultfd and page-table scans, which Swift can't express (ioctls with
 * struct layouts, ptrace).
 *
 * Invariant: every call that can fail returns a negative errno value; calls interrupted by a signal are
 * repeated here. The kernel's interface is declared here where the build system's headers are older than it.
 */
#ifndef CLIVEMEMORY_H
#define CLIVEMEMORY_H

#include "clivememory_claims.h"
#include "clivememory_inject.h"
#include "clivememory_scan.h"
#include "clivememory_uffd.h"

#endif
