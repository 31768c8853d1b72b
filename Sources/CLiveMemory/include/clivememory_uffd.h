/* What a userfaultfd is asked for. Addresses are those of the process that made it. */
#ifndef CLIVEMEMORY_UFFD_H
#define CLIVEMEMORY_UFFD_H

#include <stdbool.h>
#include <stdint.h>

/* The handshake, once for each descriptor: write protection of shared memory and huge pages, with markers where
 * no page is; `asynchronous`: writes go through and are noted. -EINVAL: the kernel is too old. */
int ck_uffd_begin(int fd, bool asynchronous);

/* Registers a range for write protection. -EBUSY: another one has it. */
int ck_uffd_register(int fd, uint64_t start, uint64_t length);
int ck_uffd_unregister(int fd, uint64_t start, uint64_t length);
/* Write-protects a range, or lets it be written again and wakes who waits for that. */
int ck_uffd_protect(int fd, uint64_t start, uint64_t length, bool protect);
/* Lets everybody who waits in the range try again. */
int ck_uffd_wake(int fd, uint64_t start, uint64_t length);

/* Reads up to `capacity` addresses of write faults. Returns how many; 0: none are waiting. */
int ck_uffd_read(int fd, uint64_t *addresses, int capacity);

#endif
