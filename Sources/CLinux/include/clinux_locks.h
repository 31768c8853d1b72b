/* Open-file-description locks, on descriptors that serve nothing else. */
#ifndef CLINUX_LOCKS_H
#define CLINUX_LOCKS_H

#include <stdbool.h>
#include <stdint.h>

enum ck_lock_mode { CK_LOCK_NONE, CK_LOCK_SHARED, CK_LOCK_EXCLUSIVE };

/* Opens the inode behind `path` for locking and registers the descriptor: a forked child finds a dead
 * descriptor of the same number in its place, so that it neither holds the locks nor keeps them alive.
 * A process made by a bare clone or vfork does not get that. Returns the descriptor. */
int ck_lock_open(const char *path, bool writable);
int ck_lock_close(int fd);

/* Sets, changes or (`CK_LOCK_NONE`) removes the lock on a range. Without `wait`, -EAGAIN means that
 * somebody holds a conflicting one. */
int ck_lock_set(int fd, enum ck_lock_mode mode, uint64_t start, uint64_t count, bool wait);
/* Returns 1 when somebody else holds a lock that conflicts with `mode`, else 0. */
int ck_lock_conflicts(int fd, enum ck_lock_mode mode, uint64_t start, uint64_t count);

#endif
