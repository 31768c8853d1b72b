#define _GNU_SOURCE
#include "clivememory_uffd.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Of newer kernels than the headers. */
#ifndef USERFAULTFD_IOC_NEW
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

/* -EAGAIN: the address space is changing at this moment. */
static int control(int fd, unsigned long what, void *argument) {
    while (ioctl(fd, what, argument) < 0) {
        if (errno != EINTR && errno != EAGAIN) return -errno;
        sched_yield();
    }
    return 0;
}

int ck_uffd_open(void) {
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    if (fd >= 0) return fd;
    int error = errno;
    int device = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0) return -error;
    fd = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) error = errno;
    close(device);
    return fd < 0 ? -error : fd;
}

int ck_uffd_features(uint64_t *features) {
    int fd = ck_uffd_open();
    if (fd < 0) return fd;
    struct uffdio_api api = {.api = UFFD_API};
    int error = control(fd, UFFDIO_API, &api);
    close(fd);
    *features = api.features;
    return error;
}

int ck_uffd_begin_own(int fd, uint64_t features) {
    struct uffdio_api api = {
        .api = UFFD_API, .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_THREAD_ID | features};
    return control(fd, UFFDIO_API, &api);
}

int ck_uffd_begin(int fd, bool asynchronous) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | ck_write_protects_shared | ck_write_protects_untouched |
                    (asynchronous ? ck_write_protects_asynchronously : 0),
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

int ck_uffd_begin_missing(int fd) {
    struct uffdio_api api = {
        .api = UFFD_API,
        .features = UFFD_FEATURE_MISSING_SHMEM | UFFD_FEATURE_MISSING_HUGETLBFS | UFFD_FEATURE_THREAD_ID};
    return control(fd, UFFDIO_API, &api);
}

int ck_uffd_register_missing(int fd, uint64_t start, uint64_t length) {
    struct uffdio_register range = {.range = {start, length}, .mode = UFFDIO_REGISTER_MODE_MISSING};
    return control(fd, UFFDIO_REGISTER, &range);
}

/* One unit. */
static int provide(int fd, uint64_t start, const void *from, uint64_t length) {
    for (;;) {
        int result;
        if (from) {
            struct uffdio_copy copy = {
                .dst = start, .src = (uint64_t)(uintptr_t)from, .len = length, .mode = UFFDIO_COPY_MODE_DONTWAKE};
            result = ioctl(fd, UFFDIO_COPY, &copy);
        } else {
            struct uffdio_zeropage zero = {.range = {start, length}, .mode = UFFDIO_ZEROPAGE_MODE_DONTWAKE};
            result = ioctl(fd, UFFDIO_ZEROPAGE, &zero);
        }
        if (result == 0) return 0;
        if (errno != EAGAIN && errno != EINTR) return -errno;
        sched_yield();
    }
}

int ck_uffd_provide(int fd, uint64_t start, const void *from, uint64_t length, uint64_t unit) {
    /* By units: a call that meets a page that is there ends in the middle. */
    for (uint64_t done = 0; done < length; done += unit) {
        int error = provide(fd, start + done, from ? (const char *)from + done : NULL, unit);
        if (error) return error;
    }
    return 0;
}

/* Of newer kernels than the headers. */
struct poison_argument {
    struct uffdio_range range;
    uint64_t mode;
    int64_t updated;
};
#define POISON_REQUEST _IOWR(UFFDIO, 0x08, struct poison_argument)

int ck_uffd_poison(int fd, uint64_t start, uint64_t length, uint64_t unit) {
    for (uint64_t done = 0; done < length; done += unit) {
        struct poison_argument poison = {.range = {start + done, unit}};
        while (ioctl(fd, POISON_REQUEST, &poison) < 0) {
            if (errno == EEXIST) break;
            if (errno != EAGAIN && errno != EINTR) return -errno;
        }
    }
    return 0;
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

int ck_uffd_read_faults(int fd, struct ck_fault_message *faults, int capacity) {
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
            if (messages[i].event != UFFD_EVENT_PAGEFAULT) continue;
            faults[count++] = (struct ck_fault_message){
                .address = messages[i].arg.pagefault.address, .thread = messages[i].arg.pagefault.feat.ptid};
        }
        return count;
    }
}

int ck_uffd_read(int fd, uint64_t *addresses, int capacity) {
    struct ck_fault_message faults[16];
    int count = ck_uffd_read_faults(fd, faults, capacity < 16 ? capacity : 16);
    for (int i = 0; i < count; i++) addresses[i] = faults[i].address;
    return count;
}

int ck_thread_processor(uint32_t thread) {
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/self/task/%u/stat", thread);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    if (got <= 0) return -ESRCH;
    text[got] = 0;
    /* The name may have blanks and parentheses in it: the fields are counted from the last one. The processor is the 39th, the state
     * behind the name the 3rd. */
    char *field = strrchr(text, ')');
    for (int number = 3; field && number <= 39; number++) field = strchr(field + 1, ' ');
    int processor;
    return field && sscanf(field, " %d", &processor) == 1 ? processor : -EINVAL;
}

int ck_run_on_processor(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (processor >= 0) {
        CPU_SET(processor, &set);
    } else {
        memset(&set, 0xff, sizeof set);
    }
    return sched_setaffinity(0, sizeof set, &set) < 0 ? -errno : 0;
}

void ck_prefer_this_thread(void) { setpriority(PRIO_PROCESS, (id_t)syscall(SYS_gettid), -20); }
