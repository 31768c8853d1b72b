// What every part of the workload uses: checksums, time, errors, gates.

#include "workload.h"

#include <errno.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { KEPT_ERRORS = 16, ERROR_LENGTH = 160 };

static struct {
    pthread_mutex_t lock;
    uint64_t count;
    char texts[KEPT_ERRORS][ERROR_LENGTH];
} errors = {.lock = PTHREAD_MUTEX_INITIALIZER};

uint64_t checksum(const uint64_t *words, int count, uint64_t seed)
{
    // Two independent lanes: the emulated processor multiplies while it adds.
    uint64_t first = seed ^ 0x243f6a8885a308d3, second = ~seed;
    for (int i = 0; i + 1 < count; i += 2) {
        first = (first ^ words[i]) * 0x9e3779b97f4a7c15;
        second = (second ^ words[i + 1]) * 0xc2b2ae3d27d4eb4f;
        first ^= first >> 29;
        second ^= second >> 31;
    }
    if (count & 1)
        first = (first ^ words[count - 1]) * 0x9e3779b97f4a7c15;
    return mixed(first ^ (second << 7 | second >> 57));
}

uint64_t monotonic_nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

void sleep_nanoseconds(uint64_t duration)
{
    struct timespec left = {duration / 1000000000, duration % 1000000000};
    while (clock_nanosleep(CLOCK_MONOTONIC, 0, &left, &left) == EINTR) {
    }
}

void report_error(const char *format, ...)
{
    char text[ERROR_LENGTH];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    pthread_mutex_lock(&errors.lock);
    if (errors.count < KEPT_ERRORS) {
        strcpy(errors.texts[errors.count], text);
        fprintf(stderr, "CORRUPT %s\n", text);
    }
    errors.count++;
    pthread_mutex_unlock(&errors.lock);
}

void fail(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "workload: ");
    vfprintf(stderr, format, arguments);
    fprintf(stderr, "\n");
    va_end(arguments);
    fflush(stderr);
    exit(1);
}

void print_errors(FILE *out)
{
    pthread_mutex_lock(&errors.lock);
    fprintf(out, "\"error_count\":%lu,\"errors\":[", errors.count);
    // The texts are this program's own and hold no character that JSON has to escape.
    for (uint64_t i = 0; i < errors.count && i < KEPT_ERRORS; i++)
        fprintf(out, "%s\"%s\"", i ? "," : "", errors.texts[i]);
    fprintf(out, "]");
    pthread_mutex_unlock(&errors.lock);
}

bool has_errors(void)
{
    pthread_mutex_lock(&errors.lock);
    bool result = errors.count > 0;
    pthread_mutex_unlock(&errors.lock);
    return result;
}

void *new_pages(uint64_t count)
{
    void *pages = mmap(NULL, count * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return pages == MAP_FAILED ? NULL : pages;
}

void gate_pass(struct gate *gate)
{
    // Read without the lock on the way of a fast worker; the closer waits until it is seen.
    if (!__atomic_load_n(&gate->closed, __ATOMIC_ACQUIRE))
        return;
    pthread_mutex_lock(&gate->lock);
    gate->waiting++;
    pthread_cond_broadcast(&gate->changed);
    while (gate->closed)
        pthread_cond_wait(&gate->changed, &gate->lock);
    gate->waiting--;
    pthread_cond_broadcast(&gate->changed);
    pthread_mutex_unlock(&gate->lock);
}

void gate_close(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    __atomic_store_n(&gate->closed, true, __ATOMIC_RELEASE);
    while (gate->waiting < gate->workers)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

void gate_open(struct gate *gate)
{
    pthread_mutex_lock(&gate->lock);
    __atomic_store_n(&gate->closed, false, __ATOMIC_RELEASE);
    pthread_cond_broadcast(&gate->changed);
    // Until all are through: a gate that is closed again at once must not count those who still stand here.
    while (gate->waiting > 0)
        pthread_cond_wait(&gate->changed, &gate->lock);
    pthread_mutex_unlock(&gate->lock);
}

void start_worker(struct gate *gate, void *(*body)(void *), void *argument)
{
    if (gate) {
        pthread_mutex_lock(&gate->lock);
        gate->workers++;
        pthread_mutex_unlock(&gate->lock);
    }
    pthread_t thread;
    int status = pthread_create(&thread, NULL, body, argument);
    if (status != 0)
        fail("a thread can't be started: %s", strerror(status));
    pthread_detach(thread);
}
