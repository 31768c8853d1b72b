/* Files, block devices and mappings: system calls that return a negative errno value. */
#ifndef CLINUX_FILES_H
#define CLINUX_FILES_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* What a descriptor is. */
enum ck_file_type { CK_REGULAR, CK_BLOCK, CK_DIRECTORY, CK_OTHER };

struct ck_file_status {
    enum ck_file_type type;
    uint64_t size;          /* bytes; 0 for devices */
    uint64_t device, inode; /* of the file system that holds the node */
    uint32_t major, minor;  /* of the device node, or of the device below the file */
    uint32_t block_size;    /* preferred size of I/O */
    uint32_t owner;
    uint32_t mode;
};

/* How to open. Every descriptor is close-on-exec. */
enum ck_open_flags {
    CK_READ_WRITE = 1, /* otherwise read-only */
    CK_CREATE = 2,     /* create, failing when it is there; mode 0600 */
    CK_DIRECT = 4,     /* O_DIRECT */
    CK_CLAIM = 8,      /* O_EXCL on a block device: fails when it is in use */
    CK_TEMPORARY = 16, /* O_TMPFILE */
};

int ck_open(const char *path, unsigned flags);
/* Shared memory by its POSIX name; `flags` as above. */
int ck_open_shared_memory(const char *name, unsigned flags);
int ck_remove_shared_memory(const char *name);
/* Anonymous memory; `huge` asks for pages of the default huge size. */
int ck_open_anonymous(const char *name, bool huge);
int ck_close(int fd);
int ck_remove(const char *path);
int ck_status(int fd, struct ck_file_status *status);
int ck_status_at(const char *path, struct ck_file_status *status);

/* Reads until `count` bytes or the end. Returns the bytes read. */
int64_t ck_read_at(int fd, void *to, size_t count, uint64_t offset);
/* One write, repeated only when interrupted before it began. Returns the bytes written. */
int64_t ck_write_at(int fd, const void *from, size_t count, uint64_t offset);
int ck_flush_data(int fd);
int ck_flush_all(int fd);
int ck_set_size(int fd, uint64_t size);
/* Allocates blocks for a range, keeping data and size. */
int ck_allocate(int fd, uint64_t offset, uint64_t length);
/* Frees the blocks of a range; it reads as zeros then. */
int ck_punch(int fd, uint64_t offset, uint64_t length);
/* Counts the bytes of a range that are no holes. -EINVAL where the file system can't say. */
int ck_allocated(int fd, uint64_t offset, uint64_t length, uint64_t *bytes);
/* True when the file system never writes in place, so that allocated blocks promise nothing. */
bool ck_is_copy_on_write(int fd);
/* The alignment that direct I/O wants, in bytes; 0 when the system does not say. */
uint32_t ck_direct_alignment(int fd);

int ck_device_size(int fd, uint64_t *size);
int ck_device_sector_size(int fd, uint32_t *size);
int ck_device_discard(int fd, uint64_t offset, uint64_t length);

/* Reserves address space of `length` bytes, aligned to `alignment`, that nothing can touch. */
int ck_address_reserve(size_t length, size_t alignment, void **base);
/* Maps a range of a file at `at`, replacing what was there. */
int ck_address_map(void *at, size_t length, bool writable, int fd, uint64_t offset);
/* Asks for transparent huge pages. */
int ck_address_prefer_huge(void *at, size_t length);
int ck_address_release(void *base, size_t length);

#endif
