/* A plugin for nbdkit that keeps no disk, only a log of what is written to it: what, where and when.
 *
 * Parameters: data=FD and index=FD, two files to append to; disk=BYTES once for each disk, whose export is named
 * by its number, from 0.
 *
 * Invariants:
 * - A write is answered after its record is in the index; its stamps lie between its arrival and its answer.
 * - After the first failure nothing is logged any more: a log has no gaps.
 * - Nothing is synced: the log is worth nothing once this process or the machine's has ended.
 */
#define NBDKIT_API_VERSION 2
#include <nbdkit-plugin.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "cnbdlog.h"

#define THREAD_MODEL NBDKIT_THREAD_MODEL_PARALLEL

enum { MOST_DISKS = 1024 };

static int data_fd = -1, index_fd = -1;
static uint64_t disks[MOST_DISKS];
static uint32_t disk_count;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t sequence, position;
static int failure;

static int log_config(const char *key, const char *value) {
    int64_t size;
    if (strcmp(key, "data") == 0) return nbdkit_parse_int(key, value, &data_fd);
    if (strcmp(key, "index") == 0) return nbdkit_parse_int(key, value, &index_fd);
    if (strcmp(key, "disk") != 0) {
        nbdkit_error("there is no parameter %s", key);
        return -1;
    }
    if (disk_count == MOST_DISKS) {
        nbdkit_error("at most %d disks", MOST_DISKS);
        return -1;
    }
    size = nbdkit_parse_size(value);
    if (size < 0) return -1;
    disks[disk_count++] = (uint64_t)size;
    return 0;
}

static int log_config_complete(void) {
    if (data_fd >= 0 && index_fd >= 0 && disk_count > 0) return 0;
    nbdkit_error("data, index and at least one disk are needed");
    return -1;
}

/* A handle is the address of its disk's size. */
static void *log_open(int readonly) {
    uint32_t disk;
    (void)readonly;
    if (nbdkit_parse_uint32_t("export", nbdkit_export_name(), &disk) < 0) return NULL;
    if (disk >= disk_count) {
        nbdkit_error("there is no disk %u", disk);
        return NULL;
    }
    return &disks[disk];
}

static int64_t log_get_size(void *handle) { return (int64_t)*(uint64_t *)handle; }

static int log_pread(void *handle, void *buffer, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)handle, (void)buffer, (void)count, (void)offset, (void)flags;
    nbdkit_error("a log can't be read as a disk");
    nbdkit_set_error(EINVAL);
    return -1;
}

static int append(int fd, const void *bytes, size_t count, uint64_t at) {
    const char *from = bytes;
    while (count > 0) {
        ssize_t done = pwrite(fd, from, count, (off_t)at);
        if (done < 0 && errno == EINTR) continue;
        if (done <= 0) return done < 0 ? errno : ENOSPC;
        from += done, at += (uint64_t)done, count -= (size_t)done;
    }
    return 0;
}

static uint64_t nanoseconds(clockid_t clock) {
    struct timespec time;
    clock_gettime(clock, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

/* Both clocks at one instant: a thread that is held up between the readings reads again, so that this does not look like a clock that was
 * set. */
static void read_clocks(struct cnbdlog_record *record) {
    for (int tries = 0; tries < 100; tries++) {
        record->monotonic = nanoseconds(CLOCK_MONOTONIC);
        record->realtime = nanoseconds(CLOCK_REALTIME);
        if (nanoseconds(CLOCK_MONOTONIC) - record->monotonic < 50000) return;
    }
}

static int log_record(void *handle, enum cnbdlog_kind kind, const void *bytes, uint32_t count, uint64_t offset) {
    int error;
    pthread_mutex_lock(&lock);
    if (!failure && kind == CNBDLOG_WRITE) failure = append(data_fd, bytes, count, position);
    if (!failure) {
        struct cnbdlog_record record = {
            .kind = kind,
            .disk = (uint32_t)((uint64_t *)handle - disks),
            .sequence = sequence,
            .offset = offset,
            .length = count,
            .position = kind == CNBDLOG_WRITE ? position : 0,
        };
        read_clocks(&record);
        failure = append(index_fd, &record, sizeof record, sequence * sizeof record);
        sequence++;
        if (kind == CNBDLOG_WRITE) position += count;
    }
    error = failure;
    pthread_mutex_unlock(&lock);
    if (!error) return 0;
    nbdkit_error("the log can't be written: %s", strerror(error));
    nbdkit_set_error(error);
    return -1;
}

static int log_pwrite(void *handle, const void *buffer, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)flags;
    return log_record(handle, CNBDLOG_WRITE, buffer, count, offset);
}

static int log_zero(void *handle, uint32_t count, uint64_t offset, uint32_t flags) {
    (void)flags;
    return log_record(handle, CNBDLOG_ZERO, NULL, count, offset);
}

/* Zeros cost a record, however many they are. */
static int log_can_fast_zero(void *handle) {
    (void)handle;
    return 1;
}

static struct nbdkit_plugin plugin = {
    .name = "ckstore-log",
    .longname = "log of a disk's writes",
    .config = log_config,
    .config_complete = log_config_complete,
    .open = log_open,
    .get_size = log_get_size,
    .pread = log_pread,
    .pwrite = log_pwrite,
    .zero = log_zero,
    .can_fast_zero = log_can_fast_zero,
};

NBDKIT_REGISTER_PLUGIN(plugin)
