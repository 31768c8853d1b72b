#define _GNU_SOURCE
#include "clivememory_scan.h"

#include <errno.h>
#include <linux/ioctl.h>
#include <linux/magic.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/vfs.h>
#include <unistd.h>

#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#define MADV_POPULATE_WRITE 23
#endif

/* The interface of Linux 6.7 and newer. */
struct pagemap_scan_argument {
    uint64_t size, flags, start, end, walk_end, found, capacity, most_pages;
    uint64_t inverted, all_of, any_of, returned;
};
#define PAGEMAP_SCAN_REQUEST _IOWR('f', 16, struct pagemap_scan_argument)
enum { PAGE_WRITTEN = 1 << 1, PAGE_PRESENT = 1 << 3, PAGE_SWAPPED = 1 << 4 };
enum { SCAN_PROTECTS = 1 << 0, SCAN_CHECKS_ASYNCHRONOUS = 1 << 1 };

int ck_scan_pages(int pagemap, enum ck_scan what, uint64_t *start, uint64_t end, struct ck_scanned *found, size_t capacity) {
    uint64_t category = what == CK_SCAN_ANYTHING  ? PAGE_PRESENT | PAGE_SWAPPED
                        : what == CK_SCAN_PRESENT ? PAGE_PRESENT
                                                  : PAGE_WRITTEN;
    struct pagemap_scan_argument scan = {
        .size = sizeof scan,
        .flags = what == CK_SCAN_WRITTEN_PROTECT ? SCAN_PROTECTS | SCAN_CHECKS_ASYNCHRONOUS : 0,
        .start = *start,
        .end = end,
        .found = (uint64_t)(uintptr_t)found,
        .capacity = capacity,
        .any_of = category,
        .returned = category,
    };
    int count = ioctl(pagemap, PAGEMAP_SCAN_REQUEST, &scan);
    if (count < 0) return -errno;
    *start = scan.walk_end;
    return count;
}

/* The interface of Linux 6.11 and newer. */
struct mapping_query {
    uint64_t size, flags, address;
    uint64_t start, end, properties, page_size, file_offset, inode;
    uint32_t major, minor, name_size, build_id_size;
    uint64_t name, build_id;
};
#define MAPPING_QUERY_REQUEST _IOWR('f', 17, struct mapping_query)
enum { MAPPING_WRITABLE = 1 << 1, MAPPING_SHARED = 1 << 3 };

int ck_find_mapping(int maps, uint64_t address, struct ck_mapping *found) {
    struct mapping_query query = {.size = sizeof query, .address = address};
    if (ioctl(maps, MAPPING_QUERY_REQUEST, &query) < 0) return -errno;
    *found = (struct ck_mapping){
        .start = query.start,
        .end = query.end,
        .file_offset = query.file_offset,
        .inode = query.inode,
        .major = query.major,
        .minor = query.minor,
        .is_shared = query.properties & MAPPING_SHARED,
        .is_writable = query.properties & MAPPING_WRITABLE,
    };
    return 0;
}

int ck_next_data(int fd, uint64_t *start, uint64_t *stop, uint64_t end) {
    off_t data = lseek(fd, (off_t)*start, SEEK_DATA);
    if (data < 0) return errno == ENXIO ? 0 : -errno;
    if ((uint64_t)data >= end) return 0;
    off_t hole = lseek(fd, data, SEEK_HOLE);
    if (hole < 0) return errno == ENXIO ? 0 : -errno;
    *start = (uint64_t)data;
    *stop = (uint64_t)hole < end ? (uint64_t)hole : end;
    return 1;
}

int64_t ck_shared_memory_page_size(int fd) {
    struct statfs file_system;
    while (fstatfs(fd, &file_system) < 0) {
        if (errno != EINTR) return -errno;
    }
    switch ((uint64_t)file_system.f_type) {
    case TMPFS_MAGIC: return sysconf(_SC_PAGESIZE);
    case HUGETLBFS_MAGIC: return file_system.f_bsize;
    default: return 0;
    }
}

int ck_populate(void *start, size_t length, bool for_writing) {
    while (madvise(start, length, for_writing ? MADV_POPULATE_WRITE : MADV_POPULATE_READ) < 0) {
        if (errno != EINTR && errno != EAGAIN) return -errno;
    }
    return 0;
}
