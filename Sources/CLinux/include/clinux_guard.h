/* Copies between memory and a mapping that may fault: a truncated file, a failing device, a full
 * file system. The fault becomes a return value instead of a signal. */
#ifndef CLINUX_GUARD_H
#define CLINUX_GUARD_H

#include <stddef.h>
#include <stdint.h>

/* Where and why a guarded copy stopped. */
struct ck_fault {
    int signal;        /* SIGBUS or SIGSEGV */
    int code;          /* si_code */
    uintptr_t address; /* in the mapping, rounded down to a page when the kernel says no more */
};

/* A copy routine with libpmem's shape. */
typedef void *(*ck_copy_routine)(void *to, const void *from, size_t count, unsigned flags);

/* Installs the fault handler, chaining to the one that was there. Harmless to repeat: puts the
 * handler back in front when somebody has replaced it. Returns 0 or a negative errno value. */
int ck_guard_install(void);

/* Copies `count` bytes out of a mapping. Returns 0, or -1 after a fault in the source, which is then
 * described in `fault`; the destination is undefined then. A fault in the destination is not caught. */
int ck_guarded_load(void *to, const void *mapped, size_t count, struct ck_fault *fault);

/* Runs `routine(result, mapped, count, 0)`, which reads the mapping and leaves what it found in `result`. Returns 0, or
 * -1 after a fault in the mapping; `result` is undefined then. The routine is abandoned at the fault: it must own nothing. */
int ck_guarded_scan(void *result, const void *mapped, size_t count, ck_copy_routine routine, struct ck_fault *fault);

/* Copies `count` bytes into a mapping by `routine` and orders the stores before everything that
 * follows. Returns 0, or -1 after a fault in the destination; a fault in the source is not caught. */
int ck_guarded_store(void *mapped, const void *from, size_t count, ck_copy_routine routine, unsigned flags,
                     struct ck_fault *fault);

#endif
