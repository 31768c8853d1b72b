// Memory that stays as it is: pages that carry their index, generation and checksum; a tenth of them are zero.

#include "workload.h"

#include <stdlib.h>
#include <sys/mman.h>

enum { ZERO_SHARE = 10 };

struct filled_page {
    uint32_t index, generation;
    uint64_t checksum;
    uint64_t content[PAGE_WORDS - 2];
};

static struct {
    struct filled_page *pages;
    uint64_t count, seed;
    uint32_t generation;
} filled;

static bool is_zero(uint64_t index)
{
    // In runs of 16 pages, as free memory is found.
    return mixed(filled.seed ^ index / 16) % ZERO_SHARE == 0;
}

static uint64_t checksum_of(const struct filled_page *page)
{
    return checksum(page->content, PAGE_WORDS - 2, (uint64_t)page->generation << 32 | page->index);
}

void fill(uint64_t mebibytes, uint64_t seed)
{
    if (filled.pages)
        munmap(filled.pages, filled.count * PAGE_BYTES);
    filled.seed = seed;
    filled.generation++;
    filled.count = mebibytes * PAGES_PER_MEBIBYTE;
    filled.pages = filled.count ? new_pages(filled.count) : NULL;
    if (filled.count && !filled.pages)
        fail("there is no memory for %lu MiB", mebibytes);
    for (uint64_t i = 0; i < filled.count; i++) {
        if (is_zero(i))
            continue;
        struct filled_page *page = &filled.pages[i];
        make_content(page, seed * 0x100000001 + i);
        page->index = i;
        page->generation = filled.generation;
        page->checksum = checksum_of(page);
    }
}

void check_fill(void)
{
    for (uint64_t i = 0; i < filled.count; i++) {
        const struct filled_page *page = &filled.pages[i];
        if (is_zero(i)) {
            const uint64_t *words = (const uint64_t *)page;
            uint64_t any = 0;
            for (int k = 0; k < PAGE_WORDS; k++)
                any |= words[k];
            if (any)
                report_error("fill: page %lu is not zero", i);
        } else if (page->index != i || page->generation != filled.generation || page->checksum != checksum_of(page)) {
            report_error("fill: page %lu says page %u, generation %u", i, page->index, page->generation);
        }
    }
}

void print_fill(FILE *out)
{
    fprintf(out, "\"fill_pages\":%lu,\"fill_generation\":%u", filled.count, filled.generation);
}
