// Content like that of a busy machine's memory, from a seed alone.

#include "workload.h"

#include <string.h>

enum { WORD_COUNT = 4096, WORD_ROOM = 16 };

static struct {
    char letters[WORD_ROOM];
    int length;
} words[WORD_COUNT];

void make_words(void)
{
    static const char alphabet[] = "eeeeeeettttaaaooiinnsshhrrdlucmfwypvbgk";
    uint64_t state = 0x1234567;
    for (int i = 0; i < WORD_COUNT; i++) {
        int letters = 2 + next_random(&state) % 9;
        for (int k = 0; k < letters; k++)
            words[i].letters[k] = alphabet[next_random(&state) % (sizeof alphabet - 1)];
        words[i].letters[letters] = i % 11 == 0 ? '\n' : ' ';
        words[i].length = letters + 1;
    }
}

static void make_text(char *page, uint64_t state)
{
    char *end = page + PAGE_BYTES, *next = page;
    while (next <= end - WORD_ROOM) {
        uint64_t random = next_random(&state);
        // Four words of each number; few words are common and most are rare, as in real text.
        for (int k = 0; k < 4 && next <= end - WORD_ROOM; k++, random >>= 16) {
            int index = random & 7 ? (random >> 3 & 0x7f) * (random >> 10 & 3) : random >> 3 & (WORD_COUNT - 1);
            memcpy(next, words[index].letters, WORD_ROOM);
            next += words[index].length;
        }
    }
    memset(next, '.', end - next);
}

static void make_pointers(uint64_t *page, uint64_t state)
{
    // Objects of a heap: a header that many share, pointers near each other, counts, flags, sometimes a hash.
    uint64_t heap = 0x00007f0000000000 | (next_random(&state) & 0xfff0000000);
    uint64_t type = 0x0000560000000000 | (next_random(&state) & 0xffffff0);
    for (int i = 0; i < PAGE_WORDS; i += 8) {
        uint64_t random = next_random(&state);
        page[i] = type + (random & 3) * 64;
        page[i + 1] = heap + (random >> 8 & 0xfffff0);
        page[i + 2] = heap + (random >> 28 & 0xfffff0);
        page[i + 3] = random >> 60;
        page[i + 4] = random >> 40 & 0xffff;
        page[i + 5] = random & 0x60 ? 1 : next_random(&state);
        page[i + 6] = random & 0x10 ? 0 : heap + (i * 8);
        page[i + 7] = random & 0x80 ? 0 : next_random(&state) >> 40;
    }
}

static void make_random(uint64_t *page, uint64_t state)
{
    for (int i = 0; i < PAGE_WORDS; i++)
        page[i] = next_random(&state);
}

void make_content(void *page, uint64_t seed)
{
    uint64_t state = mixed(seed) | 1;
    switch (next_random(&state) >> 60) {
    case 0: make_random(page, state); break;
    case 1 ... 8: make_text(page, state); break;
    default: make_pointers(page, state); break;
    }
}
