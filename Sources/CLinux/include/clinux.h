/* Shims over Linux that Swift cannot express: copies that survive a faulting mapping, system calls
 * that are variadic, generic or need struct layouts, and locks that a fork must not inherit.
 *
 * Invariants:
 * - Every call that can fail returns a negative errno value and never touches the caller's `errno`
 *   as its result; calls interrupted by a signal are repeated here.
 * - Nothing here allocates, except the registry of lock descriptors.
 */
#ifndef CLINUX_H
#define CLINUX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "clinux_files.h"
#include "clinux_guard.h"
#include "clinux_locks.h"
#include "clinux_process.h"

#endif
