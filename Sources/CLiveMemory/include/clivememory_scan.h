/* What page tables of another process and extents of files say. */
#ifndef CLIVEMEMORY_SCAN_H
#define CLIVEMEMORY_SCAN_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Addresses in the process, the end excluded. */
struct ck_scanned {
    uint64_t start, end, categories;
};

enum ck_scan {
    CK_SCAN_WRITTEN_PROTECT, /* pages written since they were protected; protects them again, atomically */
    CK_SCAN_PRESENT,         /* pages that its page tables have */
    CK_SCAN_ANYTHING,        /* these, and those with another entry: swapped, being moved, marked; `categories` tells which */
};

/* Scans [*start, end) through `pagemap`, an open /proc/PID/pagemap. Returns how many ranges it found, at most
 * `capacity`; `*start` then says how far it came. -EPERM: a range is not under asynchronous protection.
 * -ENOTTY: the kernel is too old. */
int ck_scan_pages(int pagemap, enum ck_scan what, uint64_t *start, uint64_t end, struct ck_scanned *found, size_t capacity);

/* Of the categories of a scanned range: in the page tables right now. */
static const uint64_t ck_category_present = (uint64_t)1 << 3;

/* Whether an entry of /proc/PID/pagemap is nothing but the mark of a page that was write-protected without being there. Who may not see
 * what entries hold is told of none. */
static inline bool ck_is_marker(uint64_t entry) {
    /* Swapped, and of the last of the 32 types, which the kernel gave to marks. */
    return (entry >> 62) == 1 && (entry & 31) == 31;
}

/* One mapping of another process. */
struct ck_mapping {
    uint64_t start, end, file_offset, inode;
    uint32_t major, minor;
    bool is_shared, is_writable;
};

/* The mapping at an address, through `maps`, an open /proc/PID/maps. -ENOENT: nothing is mapped there; -ESRCH: the process has given its
 * memory back; -ENOTTY: the kernel is older than 6.11 and only lists mappings. */
int ck_find_mapping(int maps, uint64_t address, struct ck_mapping *found);

/* The next extent of a file that holds data, from `*start` on and before `end`: `*start` and `*stop`. Returns 1, or 0 when
 * only holes follow. */
int ck_next_data(int fd, uint64_t *start, uint64_t *stop, uint64_t end);

/* The size of a page in a file's memory when the file lies in shared memory (tmpfs, memfd) or in huge pages; 0: it lies on some
 * other file system, whose pages can't be tracked. */
int64_t ck_shared_memory_page_size(int fd);

/* Provides the page tables of a mapped range for reading or writing, so that neither faults. -EFAULT: the file is shorter. */
int ck_populate(void *start, size_t length, bool for_writing);

#endif
