#define _GNU_SOURCE
#include "clinux_locks.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <unistd.h>

/* The registry of lock descriptors. Held across a fork, so that the child finds it whole. */
static pthread_mutex_t registry_lock = PTHREAD_MUTEX_INITIALIZER;
static int *registry;
static size_t registry_count, registry_capacity;
static bool fork_handlers_set;

static void before_fork(void) { pthread_mutex_lock(&registry_lock); }
static void after_fork_in_parent(void) { pthread_mutex_unlock(&registry_lock); }

/* Only async-signal-safe calls. An O_PATH descriptor keeps the number taken, so that the child's
 * objects can close it later, and refuses every lock with EBADF. */
static void after_fork_in_child(void) {
    int dead = open("/", O_PATH | O_CLOEXEC);
    for (size_t i = 0; i < registry_count; i++) {
        if (dead < 0 || dup3(dead, registry[i], O_CLOEXEC) < 0) close(registry[i]);
    }
    if (dead >= 0) close(dead);
    registry_count = 0;
    pthread_mutex_unlock(&registry_lock);
}

static int reserve_slot(void) {
    if (!fork_handlers_set) {
        int failed = pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
        if (failed) return -failed;
        fork_handlers_set = true;
    }
    if (registry_count < registry_capacity) return 0;
    size_t capacity = registry_capacity ? 2 * registry_capacity : 16;
    int *grown = realloc(registry, capacity * sizeof *grown);
    if (!grown) return -ENOMEM;
    registry = grown;
    registry_capacity = capacity;
    return 0;
}

int ck_lock_open(const char *path, bool writable) {
    /* Under the registry's lock, so that no fork comes between opening and registering. */
    pthread_mutex_lock(&registry_lock);
    int result = reserve_slot();
    if (result == 0) {
        do result = open(path, O_CLOEXEC | (writable ? O_RDWR : O_RDONLY));
        while (result < 0 && errno == EINTR);
        if (result < 0)
            result = -errno;
        else
            registry[registry_count++] = result;
    }
    pthread_mutex_unlock(&registry_lock);
    return result;
}

int ck_lock_close(int fd) {
    pthread_mutex_lock(&registry_lock);
    for (size_t i = 0; i < registry_count; i++) {
        if (registry[i] == fd) {
            registry[i] = registry[--registry_count];
            break;
        }
    }
    int result = close(fd) < 0 && errno != EINTR ? -errno : 0;
    pthread_mutex_unlock(&registry_lock);
    return result;
}

static struct flock describe(enum ck_lock_mode mode, uint64_t start, uint64_t count) {
    return (struct flock){
        .l_type = mode == CK_LOCK_NONE ? F_UNLCK : mode == CK_LOCK_SHARED ? F_RDLCK : F_WRLCK,
        .l_whence = SEEK_SET,
        .l_start = (off_t)start,
        .l_len = (off_t)count,
    };
}

int ck_lock_set(int fd, enum ck_lock_mode mode, uint64_t start, uint64_t count, bool wait) {
    struct flock lock = describe(mode, start, count);
    int result;
    do result = fcntl(fd, wait ? F_OFD_SETLKW : F_OFD_SETLK, &lock);
    while (result < 0 && errno == EINTR);
    if (result == 0) return 0;
    return errno == EACCES ? -EAGAIN : -errno;
}

int ck_lock_conflicts(int fd, enum ck_lock_mode mode, uint64_t start, uint64_t count) {
    struct flock lock = describe(mode, start, count);
    if (fcntl(fd, F_OFD_GETLK, &lock) < 0) return -errno;
    return lock.l_type != F_UNLCK;
}
