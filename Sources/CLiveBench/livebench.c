#define _GNU_SOURCE
#include "clivebench.h"

#include <errno.h>
#include <lz4.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { unit = 64 << 10 };

static uint64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000u + (uint64_t)time.tv_nsec;
}

static int write_all(int file, const char *bytes, size_t count) {
    while (count > 0) {
        ssize_t done = write(file, bytes, count);
        if (done < 0) {
            if (errno == EINTR) continue;
            return -errno;
        }
        bytes += done;
        count -= (size_t)done;
    }
    return 0;
}

static int save(const char *bytes, size_t count, int file) {
    static char packed[LZ4_COMPRESSBOUND(unit) + 4], pending[4 << 20];
    size_t used = 0;
    for (size_t done = 0; done < count; done += unit) {
        int length = count - done < unit ? (int)(count - done) : unit;
        int result = LZ4_compress_default(bytes + done, packed, length, sizeof packed);
        if (result <= 0) return -EIO;
        if (used + (size_t)result > sizeof pending) {
            int error = write_all(file, pending, used);
            if (error) return error;
            used = 0;
        }
        __builtin_memcpy(pending + used, packed, (size_t)result);
        used += (size_t)result;
    }
    int error = write_all(file, pending, used);
    if (error) return error;
    return fdatasync(file) < 0 ? -errno : 0;
}

pid_t ckb_fork_save(const void *bytes, size_t count, int file, uint64_t *nanoseconds) {
    uint64_t start = now();
    pid_t child = fork();
    if (child == 0) _exit(file < 0 ? 0 : save(bytes, count, file) == 0 ? 0 : 1);
    *nanoseconds = now() - start;
    return child < 0 ? -errno : child;
}

int ckb_wait(pid_t child) {
    int status;
    while (waitpid(child, &status, 0) < 0) {
        if (errno != EINTR) return -errno;
    }
    return WIFEXITED(status) ? WEXITSTATUS(status) : -EIO;
}

int64_t ckb_remap_private(void *bytes, size_t count, int file, void *aside) {
    uint64_t start = now();
    if (mremap(bytes, count, count, MREMAP_MAYMOVE | MREMAP_FIXED, aside) == MAP_FAILED) return -errno;
    if (mmap(bytes, count, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_FIXED, file, 0) == MAP_FAILED) return -errno;
    return (int64_t)(now() - start);
}

int ckb_remap_back(void *bytes, size_t count, void *aside) {
    return mremap(aside, count, count, MREMAP_MAYMOVE | MREMAP_FIXED, bytes) == MAP_FAILED ? -errno : 0;
}

void ckb_touch(void *bytes, const uint64_t *pages, size_t count, uint32_t *nanoseconds) {
    for (size_t i = 0; i < count; i++) {
        volatile uint64_t *word = (volatile uint64_t *)((char *)bytes + pages[i] * 4096);
        uint64_t start = now();
        *word = start;
        nanoseconds[i] = (uint32_t)(now() - start);
    }
}
