#define _GNU_SOURCE
#include "clinux_files.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fs.h>
#include <linux/magic.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/sysmacros.h>
#include <unistd.h>

/* Not in every linux/magic.h. */
#define CK_ZFS_MAGIC 0x2fc12fc1
#define CK_BCACHEFS_MAGIC 0xca451a4e

#define RETRY(call)                                 \
    ({                                              \
        __typeof__(call) result_;                   \
        do result_ = (call);                        \
        while (result_ < 0 && errno == EINTR);      \
        result_ < 0 ? -(__typeof__(call))errno : result_; \
    })

static int system_flags(unsigned flags) {
    return O_CLOEXEC | (flags & (CK_READ_WRITE | CK_TEMPORARY) ? O_RDWR : O_RDONLY) |
           (flags & CK_CREATE ? O_CREAT | O_EXCL : 0) | (flags & CK_DIRECT ? O_DIRECT : 0) |
           (flags & CK_CLAIM ? O_EXCL : 0) | (flags & CK_TEMPORARY ? O_TMPFILE : 0);
}

int ck_open(const char *path, unsigned flags) { return RETRY(open(path, system_flags(flags), 0600)); }

int ck_open_shared_memory(const char *name, unsigned flags) {
    return RETRY(shm_open(name, system_flags(flags), 0600));
}

int ck_remove_shared_memory(const char *name) { return RETRY(shm_unlink(name)); }

int ck_open_anonymous(const char *name, bool huge) {
    return RETRY(memfd_create(name, MFD_CLOEXEC | (huge ? MFD_HUGETLB : 0)));
}

/* Not repeated: Linux frees the descriptor even when close is interrupted. */
int ck_close(int fd) { return close(fd) < 0 && errno != EINTR ? -errno : 0; }

int ck_remove(const char *path) { return RETRY(unlink(path)); }

static void convert(const struct stat *from, struct ck_file_status *to) {
    dev_t below = S_ISBLK(from->st_mode) ? from->st_rdev : from->st_dev;
    *to = (struct ck_file_status){
        .type = S_ISREG(from->st_mode)   ? CK_REGULAR
                : S_ISBLK(from->st_mode) ? CK_BLOCK
                : S_ISDIR(from->st_mode) ? CK_DIRECTORY
                                         : CK_OTHER,
        .size = (uint64_t)from->st_size,
        .device = from->st_dev,
        .inode = from->st_ino,
        .major = major(below),
        .minor = minor(below),
        .block_size = (uint32_t)from->st_blksize,
        .owner = from->st_uid,
        .mode = from->st_mode & 07777,
    };
}

int ck_status(int fd, struct ck_file_status *status) {
    struct stat raw;
    if (fstat(fd, &raw)) return -errno;
    convert(&raw, status);
    return 0;
}

int ck_status_at(const char *path, struct ck_file_status *status) {
    struct stat raw;
    if (stat(path, &raw)) return -errno;
    convert(&raw, status);
    return 0;
}

int64_t ck_read_at(int fd, void *to, size_t count, uint64_t offset) {
    size_t done = 0;
    while (done < count) {
        ssize_t n = RETRY(pread(fd, (char *)to + done, count - done, (off_t)(offset + done)));
        if (n < 0) return n;
        if (n == 0) break;
        done += (size_t)n;
    }
    return (int64_t)done;
}

int64_t ck_write_at(int fd, const void *from, size_t count, uint64_t offset) {
    return RETRY(pwrite(fd, from, count, (off_t)offset));
}

int ck_flush_data(int fd) { return RETRY(fdatasync(fd)); }
int ck_flush_all(int fd) { return RETRY(fsync(fd)); }
int ck_set_size(int fd, uint64_t size) { return RETRY(ftruncate(fd, (off_t)size)); }

int ck_allocate(int fd, uint64_t offset, uint64_t length) {
    return RETRY(fallocate(fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}

int ck_punch(int fd, uint64_t offset, uint64_t length) {
    return RETRY(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)length));
}

/* By the positions of data and holes: reads and writes here name their own places, so that moving the descriptor's harms nobody. */
int ck_allocated(int fd, uint64_t offset, uint64_t length, uint64_t *bytes) {
    off_t place = (off_t)offset, end = (off_t)(offset + length);
    *bytes = 0;
    while (place < end) {
        off_t data = RETRY(lseek(fd, place, SEEK_DATA));
        if (data == -ENXIO || data >= end) return 0;
        if (data < 0) return (int)data;
        off_t hole = RETRY(lseek(fd, data, SEEK_HOLE));
        if (hole < 0) return hole == -ENXIO ? 0 : (int)hole;
        *bytes += (uint64_t)((hole < end ? hole : end) - data);
        place = hole;
    }
    return 0;
}

bool ck_is_copy_on_write(int fd) {
    struct statfs info;
    if (fstatfs(fd, &info)) return false;
    switch ((uint32_t)info.f_type) {
    case BTRFS_SUPER_MAGIC:
    case CK_ZFS_MAGIC:
    case CK_BCACHEFS_MAGIC: return true;
    default: return false;
    }
}

int ck_device_size(int fd, uint64_t *size) { return RETRY(ioctl(fd, BLKGETSIZE64, size)); }

int ck_device_sector_size(int fd, uint32_t *size) {
    int bytes = 0;
    int result = RETRY(ioctl(fd, BLKSSZGET, &bytes));
    *size = (uint32_t)bytes;
    return result;
}

int ck_device_discard(int fd, uint64_t offset, uint64_t length) {
    uint64_t range[2] = {offset, length};
    return RETRY(ioctl(fd, BLKDISCARD, range));
}

int ck_address_reserve(size_t length, size_t alignment, void **base) {
    char *raw = mmap(NULL, length + alignment, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (raw == MAP_FAILED) return -errno;
    char *aligned = (char *)(((uintptr_t)raw + alignment - 1) / alignment * alignment);
    if (aligned > raw) munmap(raw, (size_t)(aligned - raw));
    size_t behind = (size_t)(raw + alignment - aligned);
    if (behind) munmap(aligned + length, behind);
    *base = aligned;
    return 0;
}

int ck_address_map(void *at, size_t length, bool writable, int fd, uint64_t offset) {
    void *result = mmap(at, length, PROT_READ | (writable ? PROT_WRITE : 0), MAP_SHARED | MAP_FIXED, fd,
                        (off_t)offset);
    return result == MAP_FAILED ? -errno : 0;
}

int ck_address_prefer_huge(void *at, size_t length) { return madvise(at, length, MADV_HUGEPAGE) ? -errno : 0; }
int ck_address_release(void *base, size_t length) { return munmap(base, length) ? -errno : 0; }
