// Records on every virtio disk, and the counters in memory that say what must be there.
//
// Each writer has a ring of its own on its disk. Record n goes to slot n mod RING_SLOTS, after the writer has seen that
// the slot holds record n - RING_SLOTS; `issued` is n before the write begins, `completed` is n after it has ended.
//
// Invariants:
// - completed <= newest record on the disk <= issued, and all records of the last ring are there. A disk that is older
//   or newer than the memory has a slot that breaks it; the writer comes across it within one ring.
// - Reads and writes bypass the guest's page cache: what is compared is the disk.

#define _GNU_SOURCE
#include "workload.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

enum { MOST_DISKS = 4, MOST_THREADS = 16, RING_SLOTS = 256, FLUSH_INTERVAL = 16 };
static const uint64_t MAGIC = 0x64726f6365726b63;

struct record {
    uint64_t magic, disk, thread, sequence;
    uint64_t content[PAGE_WORDS - 5];
    uint64_t checksum;
};

struct writer {
    int disk, thread, descriptor;
    volatile uint64_t issued, completed;
    struct record *record, *found;
};

static struct {
    struct gate gate;
    int disks, threads;
    bool stands;
    uint64_t pause_nanoseconds;
    struct writer writers[MOST_DISKS][MOST_THREADS];
} state = {.gate = GATE_INITIALIZER};

static off_t slot_offset(const struct writer *writer, uint64_t sequence)
{
    return (off_t)(writer->thread * RING_SLOTS + sequence % RING_SLOTS) * PAGE_BYTES;
}

static void make_record(struct record *record, const struct writer *writer, uint64_t sequence)
{
    uint64_t random = mixed(sequence * 64 + writer->thread * 4 + writer->disk) | 1;
    record->magic = MAGIC;
    record->disk = writer->disk;
    record->thread = writer->thread;
    record->sequence = sequence;
    for (int i = 0; i < PAGE_WORDS - 5; i++)
        record->content[i] = i % 2 ? sequence : next_random(&random);
    record->checksum = checksum((const uint64_t *)record, PAGE_WORDS - 1, MAGIC);
}

// Compares a slot with the record `sequence`, which must be there.
static void check_slot(struct writer *writer, uint64_t sequence)
{
    struct record *found = writer->found;
    ssize_t count = pread(writer->descriptor, found, PAGE_BYTES, slot_offset(writer, sequence));
    if (count != PAGE_BYTES) {
        report_error("disk %d thread %d: reading record %lu: %s", writer->disk, writer->thread, sequence, strerror(errno));
    } else if (found->magic != MAGIC || found->checksum != checksum((const uint64_t *)found, PAGE_WORDS - 1, MAGIC)) {
        report_error("disk %d thread %d: no record %lu but garbage", writer->disk, writer->thread, sequence);
    } else if (found->sequence != sequence || found->thread != (uint64_t)writer->thread || found->disk != (uint64_t)writer->disk) {
        report_error("disk %d thread %d: record %lu (of disk %lu thread %lu) where %lu belongs", writer->disk, writer->thread,
                     found->sequence, found->disk, found->thread, sequence);
    }
}

static void *work(void *argument)
{
    struct writer *writer = argument;
    for (;;) {
        gate_pass(&state.gate);
        uint64_t sequence = writer->completed + 1;
        if (sequence > RING_SLOTS)
            check_slot(writer, sequence - RING_SLOTS);
        make_record(writer->record, writer, sequence);
        writer->issued = sequence;
        if (pwrite(writer->descriptor, writer->record, PAGE_BYTES, slot_offset(writer, sequence)) != PAGE_BYTES)
            report_error("disk %d thread %d: writing record %lu: %s", writer->disk, writer->thread, sequence, strerror(errno));
        writer->completed = sequence;
        if (writer->thread % 3 == 2 && sequence % FLUSH_INTERVAL == 0 && fdatasync(writer->descriptor) != 0)
            report_error("disk %d thread %d: flushing: %s", writer->disk, writer->thread, strerror(errno));
        if (state.pause_nanoseconds)
            sleep_nanoseconds(state.pause_nanoseconds);
    }
    return NULL;
}

static void start_writers(int threads)
{
    for (int disk = 0; disk < MOST_DISKS; disk++) {
        char path[] = "/dev/vda";
        path[sizeof path - 2] += disk;
        if (access(path, F_OK) != 0)
            break;
        state.disks = disk + 1;
        for (int thread = 0; thread < threads; thread++) {
            struct writer *writer = &state.writers[disk][thread];
            writer->disk = disk;
            writer->thread = thread;
            // A third of the writers wait for the medium at every write, a third now and then, a third never.
            writer->descriptor = open(path, O_RDWR | O_DIRECT | O_CLOEXEC | (thread % 3 == 1 ? O_DSYNC : 0));
            if (writer->descriptor < 0)
                fail("%s can't be opened: %s", path, strerror(errno));
            writer->record = new_pages(2);
            if (!writer->record)
                fail("there is no memory for a writer");
            writer->found = writer->record + 1;
        }
    }
    state.threads = threads;
    for (int disk = 0; disk < state.disks; disk++)
        for (int thread = 0; thread < threads; thread++)
            start_worker(&state.gate, work, &state.writers[disk][thread]);
}

void write_disks(int threads, uint64_t pause_microseconds)
{
    state.pause_nanoseconds = pause_microseconds * 1000;
    if (threads > MOST_THREADS)
        threads = MOST_THREADS;
    if (threads == 0 && !state.stands) {
        gate_close(&state.gate);
        state.stands = true;
    } else if (threads > 0) {
        // Writers that are there go on; their number doesn't change.
        if (state.threads == 0)
            start_writers(threads);
        if (state.stands)
            gate_open(&state.gate);
        state.stands = false;
    }
}

void check_disks(void)
{
    if (!state.stands)
        gate_close(&state.gate);
    for (int disk = 0; disk < state.disks; disk++)
        for (int thread = 0; thread < state.threads; thread++) {
            struct writer *writer = &state.writers[disk][thread];
            uint64_t first = writer->completed > RING_SLOTS ? writer->completed - RING_SLOTS + 1 : 1;
            for (uint64_t sequence = first; sequence <= writer->completed; sequence++)
                check_slot(writer, sequence);
        }
    if (!state.stands)
        gate_open(&state.gate);
}

void print_disks(FILE *out)
{
    fprintf(out, "\"disks\":[");
    for (int disk = 0; disk < state.disks; disk++) {
        uint64_t issued = 0, completed = 0;
        for (int thread = 0; thread < state.threads; thread++) {
            // In this order: a write that begins and ends in between can't make completed the larger one.
            completed += state.writers[disk][thread].completed;
            issued += state.writers[disk][thread].issued;
        }
        fprintf(out, "%s{\"threads\":%d,\"issued\":%lu,\"completed\":%lu}", disk ? "," : "", state.threads, issued, completed);
    }
    fprintf(out, "]");
}
