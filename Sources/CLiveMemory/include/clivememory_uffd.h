/* What a userfaultfd is asked for. Addresses are those of the process that made it. */
#ifndef CLIVEMEMORY_UFFD_H
#define CLIVEMEMORY_UFFD_H

#include <stdbool.h>
#include <stdint.h>

/* Features that this package may want, by the kernel's numbers. */
static const uint64_t ck_write_protects_shared = (uint64_t)1 << 12;         /* UFFD_FEATURE_WP_HUGETLBFS_SHMEM, Linux 5.19 */
static const uint64_t ck_write_protects_untouched = (uint64_t)1 << 13;      /* UFFD_FEATURE_WP_UNPOPULATED, Linux 6.4 */
static const uint64_t ck_write_protects_asynchronously = (uint64_t)1 << 15; /* UFFD_FEATURE_WP_ASYNC, Linux 6.7 */

/* A userfaultfd of this process, which also sees faults that happen in system calls: by the system call, else by /dev/userfaultfd.
 * -EPERM: neither is allowed. -ENOSYS: the kernel was built without it. */
int ck_uffd_open(void);

/* What the kernel offers, asked of a descriptor that is thrown away. */
int ck_uffd_features(uint64_t *features);

/* The handshake for memory of this process, with the features that are wanted. */
int ck_uffd_begin_own(int fd, uint64_t features);

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

/* Registers a range whose missing pages are provided when they are touched. */
int ck_uffd_register_missing(int fd, uint64_t start, uint64_t length);
/* The handshake for that. */
int ck_uffd_begin_missing(int fd);
/* Provides missing pages, from `from` or, when that is null, zero. Nobody is woken. -EEXIST: a page is there already; it stays as it is. */
int ck_uffd_provide(int fd, uint64_t start, const void *from, uint64_t length, uint64_t unit);
/* From now on pages that this mapping's page tables lack end whoever touches them by SIGBUS. -EINVAL: the kernel is older than 6.6. */
int ck_uffd_poison(int fd, uint64_t start, uint64_t length, uint64_t unit);

/* A fault: where, and which thread waits. */
struct ck_fault_message {
    uint64_t address;
    uint32_t thread;
};
/* Reads up to `capacity` faults of a descriptor that ck_uffd_begin_own or ck_uffd_begin_missing was called for. Returns how many; 0: none are waiting. */
int ck_uffd_read_faults(int fd, struct ck_fault_message *faults, int capacity);

/* The processor on which a thread of this process ran last, by /proc; negative when that can't be told. */
int ck_thread_processor(uint32_t thread);
/* Lets the calling thread run on that processor alone; negative: on any. */
int ck_run_on_processor(int processor);
/* Has the calling thread run before others where that is allowed: somebody waits for what it does. */
void ck_prefer_this_thread(void);

#endif
