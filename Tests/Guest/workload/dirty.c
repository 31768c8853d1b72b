// Memory that changes: a worker writes round c into page 0, 1, 2 ... in order, looking at the old value before each write.
//
// Invariant: pages before `position` hold `round`, the others round - 1. A state of the machine that mixes two instants
// has a page that breaks it, and the worker comes across it in its next round at the latest.

#include "workload.h"

#include <sys/mman.h>

enum { BATCH_PAGES = 4096 };
static const uint64_t STEP_NANOSECONDS = 2000000;

struct dirty_page {
    uint64_t round, checksum;
    uint64_t content[PAGE_WORDS - 2];
};

static struct {
    struct gate gate;
    struct dirty_page *pages;
    uint64_t count, round, position, written;
    int64_t pages_per_second;
    bool has_worker;
} region = {.gate = GATE_INITIALIZER};

static void write_pages(uint64_t count)
{
    volatile struct dirty_page *pages = region.pages;
    uint64_t position = region.position, round = region.round;
    for (uint64_t i = 0; i < count; i++) {
        uint64_t old = pages[position].round;
        if (old != round - 1)
            report_error("dirty: page %lu holds %lu, not %lu", position, old, round - 1);
        pages[position].round = round;
        if (++position == region.count) {
            position = 0;
            round++;
        }
    }
    region.position = position;
    region.round = round;
    region.written += count;
}

static void *work(void *unused)
{
    uint64_t start = monotonic_nanoseconds(), done = 0;
    int64_t rate = 0;
    for (;;) {
        gate_pass(&region.gate);
        if (region.pages_per_second != rate) {
            rate = region.pages_per_second;
            start = monotonic_nanoseconds();
            done = 0;
        }
        if (rate < 0) {
            write_pages(BATCH_PAGES);
            continue;
        }
        uint64_t now = monotonic_nanoseconds();
        uint64_t wanted = (unsigned __int128)(now - start) * rate / 1000000000;
        uint64_t due = wanted - done;
        // After a long stop (a restored machine, say) what was missed isn't made up for.
        uint64_t most = (uint64_t)rate / 20 + 1;
        write_pages(due < most ? due : most);
        done = wanted;
        sleep_nanoseconds(STEP_NANOSECONDS);
    }
    return unused;
}

static void make_region(uint64_t count)
{
    if (region.pages)
        munmap(region.pages, region.count * PAGE_BYTES);
    region.pages = new_pages(count);
    if (!region.pages)
        fail("there is no memory for %lu pages", count);
    for (uint64_t i = 0; i < count; i++) {
        struct dirty_page *page = &region.pages[i];
        make_content(page, ~i);
        page->round = 0;
        page->checksum = checksum(page->content, PAGE_WORDS - 2, i);
    }
    region.count = count;
    region.round = 1;
    region.position = 0;
}

void dirty(int64_t pages_per_second, uint64_t mebibytes)
{
    uint64_t count = mebibytes * PAGES_PER_MEBIBYTE;
    gate_close(&region.gate);
    if (count && count != region.count)
        make_region(count);
    region.pages_per_second = region.count ? pages_per_second : 0;
    gate_open(&region.gate);
    if (region.count && !region.has_worker) {
        region.has_worker = true;
        start_worker(&region.gate, work, NULL);
    }
}

void check_dirty(void)
{
    gate_close(&region.gate);
    for (uint64_t i = 0; i < region.count; i++) {
        const struct dirty_page *page = &region.pages[i];
        uint64_t expected = i < region.position ? region.round : region.round - 1;
        if (page->round != expected)
            report_error("dirty: page %lu holds %lu, not %lu (position %lu)", i, page->round, expected, region.position);
        if (page->checksum != checksum(page->content, PAGE_WORDS - 2, i))
            report_error("dirty: the content of page %lu has changed", i);
    }
    gate_open(&region.gate);
}

void print_dirty(FILE *out)
{
    fprintf(out, "\"dirty_pages\":%lu,\"dirty_round\":%lu,\"dirty_position\":%lu,\"dirty_written\":%lu", region.count,
            region.round, region.position, region.written);
}
