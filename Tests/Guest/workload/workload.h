// The guest's self-checking workload: what its parts share.
//
// Invariants:
// - Everything that is checked lives in the guest's own memory and disks: a machine that goes on from a checkpoint goes
//   on checking against the state of that checkpoint, with no help from the host.
// - Workers change what is checked only between two passes of their gate, so that `check` sees complete steps.
// - An error is never forgotten: it is counted, the first ones are kept as text, and each goes to the console.

#ifndef WORKLOAD_H
#define WORKLOAD_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

enum { PAGE_BYTES = 4096, PAGE_WORDS = PAGE_BYTES / 8, PAGES_PER_MEBIBYTE = 256 };

// --- common.c

// A short deterministic mix of a number: the seed of everything that has to be made again for a comparison.
static inline uint64_t mixed(uint64_t value)
{
    value += 0x9e3779b97f4a7c15;
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9;
    value = (value ^ (value >> 27)) * 0x94d049bb133111eb;
    return value ^ (value >> 31);
}

// xorshift64*: fast enough for an emulated processor. The state is never zero.
static inline uint64_t next_random(uint64_t *state)
{
    uint64_t value = *state;
    value ^= value >> 12;
    value ^= value << 25;
    value ^= value >> 27;
    *state = value;
    return value * 0x2545f4914f6cdd1d;
}

uint64_t checksum(const uint64_t *words, int count, uint64_t seed);

uint64_t monotonic_nanoseconds(void);

// Sleeps; returns early never.
void sleep_nanoseconds(uint64_t duration);

// Notes that the machine's state is not what it has to be.
void report_error(const char *format, ...) __attribute__((format(printf, 1, 2)));

// Ends the guest: the workload can't do what it is for.
void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));

// "error_count": N, "errors": [...]
void print_errors(FILE *out);
bool has_errors(void);

// Pages of anonymous memory, present.
void *new_pages(uint64_t count);

// Workers pass it between two steps; whoever closes it waits until all of them stand before it.
struct gate {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int workers, waiting;
    bool closed;
};
#define GATE_INITIALIZER {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, 0, 0, false}

void gate_pass(struct gate *gate);
void gate_close(struct gate *gate);
void gate_open(struct gate *gate);

// A thread that passes `gate`: counted before it starts.
void start_worker(struct gate *gate, void *(*body)(void *), void *argument);

// --- content.c

// Makes a page as memory holds it: text, pointers and small numbers, some random. LZ4 packs 64 KiB of them 1.7 : 1.
void make_content(void *page, uint64_t seed);
void make_words(void);

// --- fill.c: memory that doesn't change

void fill(uint64_t mebibytes, uint64_t seed);
void check_fill(void);
void print_fill(FILE *out);

// --- dirty.c: memory that changes in a known order

void dirty(int64_t pages_per_second, uint64_t mebibytes);
void check_dirty(void);
void print_dirty(FILE *out);

// --- disks.c: records on every virtio disk

void write_disks(int threads, uint64_t pause_microseconds);
void check_disks(void);
void print_disks(FILE *out);

// --- ticks.c: a sign of life for the host, about every millisecond

void start_ticks(void);
uint64_t ticks_now(void);

#endif
