#define _GNU_SOURCE
#include "clivememory_uffd.h"

#include <errno.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <unistd.h>

/* Of newer kernels than the headers. */
#define FEATURE_WP_UNPOPULATED ((uint64_t)1 << 13)
#define FEATURE_WP_ASYNC ((uint64_t)1 << 15)

/* -EAGAIN: the address space is changing at this moment. */
static int control(int fd, unsigned long what, void *argument) {
    while (ioctl(fd, what, argument) < 0) {
        if (errno != EINTR && errno != EAGAIN) return -errno;
        sched_yield();
    }
    return 0;
}

int ck_uffd_begin(int fd, bool asynchronous) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM | FEATURE_WP_UNPOPULATED |
                    (asynchronous ? FEATURE_WP_ASYNC : 0),
    };
    return control(fd, UFFDIO_API, &api);
}

int ck_uffd_register(int fd, uint64_t start, uint64_t length) {
    struct uffdio_register range = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_WP};
    int error = control(fd, UFFDIO_REGISTER, &range);
    if (error) return error;
    if (range.ioctls & ((uint64_t)1 << _UFFDIO_WRITEPROTECT)) return 0;
    control(fd, UFFDIO_UNREGISTER, &range.range);
    return -EINVAL;
}

int ck_uffd_unregister(int fd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {start, length};
    return control(fd, UFFDIO_UNREGISTER, &range);
}

int ck_uffd_protect(int fd, uint64_t start, uint64_t length, bool protect) {
    struct uffdio_writeprotect range = {{start, length}, protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    return control(fd, UFFDIO_WRITEPROTECT, &range);
}

int ck_uffd_wake(int fd, uint64_t start, uint64_t length) {
    struct uffdio_range range = {start, length};
    return control(fd, UFFDIO_WAKE, &range);
}

int ck_uffd_read(int fd, uint64_t *addresses, int capacity) {
    struct uffd_msg messages[16];
    if (capacity > 16) capacity = 16;
    for (;;) {
        ssize_t got = read(fd, messages, (size_t)capacity * sizeof *messages);
        if (got < 0) {
            if (errno == EINTR) continue;
            return errno == EAGAIN ? 0 : -errno;
        }
        int count = 0;
        for (int i = 0; i < (int)((size_t)got / sizeof *messages); i++) {
            if (messages[i].event == UFFD_EVENT_PAGEFAULT) addresses[count++] = messages[i].arg.pagefault.address;
        }
        return count;
    }
}
