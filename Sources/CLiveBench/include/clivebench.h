/* Whom checkpoints of memory are compared with: fork(), the way in which Redis saves, and shared memory that is mapped anew as private.
 *
 * Invariant: a forked child calls nothing but system calls and LZ4: the threads of its parent are not there.
 */
#ifndef CLIVEBENCH_H
#define CLIVEBENCH_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Forks. The child compresses `count` bytes, 64 KiB at a time, appends them to `file`, flushes it, and ends: with 0 when all went well.
 * `nanoseconds` gets how long the parent stood still. Returns the child, or a negative errno value. With `file` negative the child ends at once. */
pid_t ckb_fork_save(const void *bytes, size_t count, int file, uint64_t *nanoseconds);

/* Waits for a child: its exit status, or a negative errno value. */
int ckb_wait(pid_t child);

/* The shortest stop of shared memory by mapping it anew: its page tables are moved to `aside`, and a private mapping of the same file takes
 * its place, so that the kernel copies what is written. Returns nanoseconds, or a negative errno value. */
int64_t ckb_remap_private(void *bytes, size_t count, int file, void *aside);

/* Moves it back, with nothing of what was written since: for measuring alone. */
int ckb_remap_back(void *bytes, size_t count, void *aside);

/* Writes a word into each of `pages`, one after the other, and notes how long each took, in nanoseconds. */
void ckb_touch(void *bytes, const uint64_t *pages, size_t count, uint32_t *nanoseconds);

#endif
