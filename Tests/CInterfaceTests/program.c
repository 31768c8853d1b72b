/* Uses every function of ckstore.h as a C program would, and its arguments as a C program should not.
 *
 * usage: program DIRECTORY    (which is empty; what is left in it may be removed)
 *
 * Exits with 0 when everything was as the header says; otherwise tells the first thing that was not. */
#define _POSIX_C_SOURCE 200809L
#include <ckstore.h>

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { page = CKSTORE_PAGE_SIZE, memory_pages = 1300, thread_count = 4, cpu_bytes = 10001 };

static char directory[512];
static ckstore_error error;

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            printf("line %d: not true: %s (last error: %s)\n", __LINE__, #condition, ckstore_error_message(&error)); \
            exit(1); \
        } \
    } while (0)

/* The call returns that code, and the error says the same. */
#define EXPECT(wanted, call) \
    do { \
        int returned = (call); \
        if (returned != (wanted) || error.code != returned) { \
            printf( \
                "line %d: %s gave %s, wanted %s: %s\n", __LINE__, #call, ckstore_code_name(returned), \
                ckstore_code_name(wanted), ckstore_error_message(&error)); \
            exit(1); \
        } \
        if (returned == CKSTORE_OK) CHECK(error.message[0] == 0 && error.reason[0] == 0); \
        else CHECK(error.message[0] != 0 && error.reason[0] != 0); \
    } while (0)

static const char *path(const char *name) {
    static char paths[4][600];
    static unsigned next;
    char *result = paths[next++ % 4];
    snprintf(result, sizeof paths[0], "%s/%s", directory, name);
    return result;
}

/* Bytes that depend on `seed` and can't be compressed; every fifth page is zero, every seventh is text. */
static void fill(unsigned char *bytes, size_t pages, uint64_t seed) {
    uint64_t state = seed * 0x9E3779B97F4A7C15u + 1;
    for (size_t number = 0; number < pages; number++) {
        unsigned char *start = bytes + number * page;
        if (number % 5 == 4) {
            memset(start, 0, page);
            continue;
        }
        for (size_t offset = 0; offset < page; offset += 8) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            uint64_t word = number % 7 == 6 ? seed + offset % 64 : state;
            memcpy(start + offset, &word, 8);
        }
    }
}

static void *allocate(size_t bytes) {
    void *memory = calloc(1, bytes);
    CHECK(memory != NULL);
    return memory;
}

static ckstore *create(const char *name) {
    ckstore_create_options options = {.struct_size = sizeof options, .medium_bytes = 256u << 20};
    ckstore *store = NULL;
    EXPECT(CKSTORE_OK, ckstore_create(path(name), &options, &store, &error));
    CHECK(store != NULL && !ckstore_is_read_only(store));
    return store;
}

static ckstore_writer *begin(ckstore *store, const char *name, const char *parent) {
    ckstore_writer *writer = NULL;
    EXPECT(CKSTORE_OK, ckstore_begin(store, name, parent, NULL, &writer, &error));
    CHECK(writer != NULL && ckstore_writer_id(writer) != 0);
    return writer;
}

static ckstore_region *open_region(ckstore *store, const char *checkpoint, const char *name) {
    ckstore_snapshot *snapshot = NULL;
    ckstore_checkpoint *opened = NULL;
    ckstore_region *region = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(store, &snapshot, &error));
    EXPECT(CKSTORE_OK, ckstore_open_checkpoint(snapshot, checkpoint, &opened, &error));
    ckstore_snapshot_free(snapshot);
    EXPECT(CKSTORE_OK, ckstore_open_region(opened, name, &region, &error));
    ckstore_checkpoint_free(opened);
    return region;
}

/* The region has just these bytes, whichever way they are read. */
static void check_content(ckstore *store, const char *checkpoint, const char *name, const void *wanted, size_t bytes) {
    ckstore_region *region = open_region(store, checkpoint, name);
    const ckstore_region_info *info = ckstore_region_get_info(region);
    size_t pages = (bytes + page - 1) / page;
    unsigned char *got = allocate(pages * page + 1);
    CHECK(!strcmp(info->name, name) && info->length_bytes == bytes && info->page_count == pages);

    got[pages * page] = 0xA5;
    EXPECT(CKSTORE_OK, ckstore_read_all(region, got, pages * page, NULL, &error));
    CHECK(memcmp(got, wanted, bytes) == 0 && got[pages * page] == 0xA5);

    memset(got, 0, pages * page);
    ckstore_read_options options = {.struct_size = sizeof options, .thread_count = 3, .is_zeroed = 1};
    EXPECT(CKSTORE_OK, ckstore_read_all(region, got, pages * page, &options, &error));
    CHECK(memcmp(got, wanted, bytes) == 0);

    memset(got, 0x5A, pages * page);
    for (size_t first = 0; first < pages; first += 11) {
        size_t count = pages - first < 11 ? pages - first : 11;
        EXPECT(CKSTORE_OK, ckstore_read_pages(region, first, got + first * page, count * page, &error));
    }
    CHECK(memcmp(got, wanted, bytes) == 0);
    for (size_t offset = bytes; offset < pages * page; offset++) CHECK(got[offset] == 0);

    memset(got, 0x5A, pages * page);
    for (size_t offset = 0; offset < bytes; offset += 70001) {
        size_t count = bytes - offset < 70001 ? bytes - offset : 70001;
        EXPECT(CKSTORE_OK, ckstore_read_bytes(region, offset, got + offset, count, &error));
    }
    CHECK(memcmp(got, wanted, bytes) == 0);
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_bytes(region, bytes, got, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_bytes(region, UINT64_MAX, got, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_pages(region, pages, got, page, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_pages(region, UINT64_MAX, got, page, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_pages(region, 0, got, page - 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_pages(region, 0, got, SIZE_MAX, &error));
    if (pages > 0) EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_all(region, got, pages * page - 1, NULL, &error));
    free(got);
    ckstore_region_free(region);
}

/* ---- saving with threads, and a child over a parent ---- */

struct share {
    ckstore_region_writer *region;
    const unsigned char *memory;
    unsigned number;
    int failed;
};

/* Puts every fourth block of 100 pages; single pages one by one in the last thread. */
static void *put_share(void *argument) {
    struct share *share = argument;
    ckstore_error own;
    for (size_t first = share->number * 100u; first < memory_pages; first += thread_count * 100u) {
        size_t count = memory_pages - first < 100 ? memory_pages - first : 100;
        if (share->number != thread_count - 1) {
            int mode = share->number == 0 ? CKSTORE_STABLE : CKSTORE_COPY;
            share->failed |=
                ckstore_put_pages(share->region, first, share->memory + first * page, count * page, mode, &own);
            continue;
        }
        for (size_t number = first + count; number-- > first;)
            share->failed |= ckstore_put_page(share->region, number, share->memory + number * page, &own);
    }
    return NULL;
}

static void put_with_threads(ckstore_region_writer *region, const unsigned char *memory) {
    struct share shares[thread_count];
    pthread_t threads[thread_count];
    for (unsigned number = 0; number < thread_count; number++) {
        shares[number] = (struct share){region, memory, number, 0};
        CHECK(pthread_create(&threads[number], NULL, put_share, &shares[number]) == 0);
    }
    for (unsigned number = 0; number < thread_count; number++) {
        CHECK(pthread_join(threads[number], NULL) == 0);
        CHECK(shares[number].failed == 0);
    }
}

static void test_parent_and_child(void) {
    ckstore *store = create("family");
    unsigned char *first = allocate(memory_pages * page), *second = allocate(memory_pages * page);
    unsigned char *cpu = allocate(3 * page);
    fill(first, memory_pages, 1);
    fill(cpu, 3, 2);

    ckstore_writer *writer = begin(store, "parent", NULL);
    ckstore_region_writer *memory = NULL, *again = NULL;
    EXPECT(
        CKSTORE_OK, ckstore_add_region(writer, "ram", CKSTORE_MEMORY, (uint64_t)memory_pages * page, &memory, &error));
    EXPECT(
        CKSTORE_OK, ckstore_add_region(writer, "ram", CKSTORE_MEMORY, (uint64_t)memory_pages * page, &again, &error));
    CHECK(memory == again);
    put_with_threads(memory, first);
    EXPECT(CKSTORE_OK, ckstore_put_blob(writer, "cpu", CKSTORE_STATE, cpu, cpu_bytes, &error));
    EXPECT(CKSTORE_OK, ckstore_put_blob(writer, "nothing", CKSTORE_STATE, NULL, 0, &error));
    EXPECT(CKSTORE_OK, ckstore_set_label(writer, "host", "one", &error));
    EXPECT(CKSTORE_OK, ckstore_set_label(writer, "host", "two", &error));
    EXPECT(CKSTORE_OK, ckstore_set_label(writer, "app", "", &error));
    uint64_t parent_id = ckstore_writer_id(writer);
    EXPECT(CKSTORE_OK, ckstore_commit(writer, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit(writer, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_page(memory, 0, first, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_set_label(writer, "late", "", &error));
    ckstore_abort(writer);
    ckstore_writer_free(writer);

    /* The child has some other pages, and a growing disk. */
    memcpy(second, first, memory_pages * page);
    fill(second + 600 * page, 40, 3);
    memset(second + 1000 * page, 0, 200 * page);
    writer = begin(store, "child", "parent");
    ckstore_region_writer *disk = NULL;
    EXPECT(
        CKSTORE_OK, ckstore_add_region(writer, "ram", CKSTORE_MEMORY, (uint64_t)memory_pages * page, &memory, &error));
    EXPECT(CKSTORE_OK, ckstore_put_pages(memory, 600, second + 600 * page, 40 * page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_OK, ckstore_put_zeros(memory, 1000, 200, &error));
    EXPECT(CKSTORE_OK, ckstore_inherit_region(writer, "cpu", &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_inherit_region(writer, "gpu", &error));
    CHECK(!strcmp(error.checkpoint, "child") && !strcmp(error.region, "gpu") && error.remedy[0] != 0);
    EXPECT(CKSTORE_OK, ckstore_add_region(writer, "disk", CKSTORE_DISK, CKSTORE_GROWING, &disk, &error));
    EXPECT(CKSTORE_OK, ckstore_put_pages(disk, 2, first, 5 * page, CKSTORE_COPY, &error));
    uint64_t child_id = ckstore_writer_id(writer);
    EXPECT(CKSTORE_OK, ckstore_commit(writer, &error));
    ckstore_writer_free(writer);

    unsigned char *disk_bytes = allocate(7 * page);
    memcpy(disk_bytes + 2 * page, first, 5 * page);
    for (int round = 0; round < 2; round++) {
        check_content(store, "parent", "ram", first, memory_pages * page);
        check_content(store, "parent", "cpu", cpu, cpu_bytes);
        check_content(store, "parent", "nothing", "", 0);
        check_content(store, "child", "ram", second, memory_pages * page);
        check_content(store, "child", "cpu", cpu, cpu_bytes);
        check_content(store, "child", "disk", disk_bytes, 7 * page);
        ckstore_close(store);
        EXPECT(CKSTORE_OK, ckstore_open(path("family"), round == 0 ? CKSTORE_READ_ONLY : CKSTORE_READ_WRITE, NULL, &store, &error));
        CHECK(ckstore_is_read_only(store) == (round == 0));
    }

    /* What the list shows. */
    ckstore_snapshot *snapshot = NULL;
    ckstore_list *list = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(store, &snapshot, &error));
    CHECK(ckstore_snapshot_generation(snapshot) != 0);
    EXPECT(CKSTORE_OK, ckstore_list_checkpoints(snapshot, &list, &error));
    CHECK(ckstore_list_count(list) == 2 && ckstore_list_at(list, 2) == NULL);
    const ckstore_checkpoint_info *old = ckstore_list_at(list, 0), *new = ckstore_list_at(list, 1);
    CHECK(!strcmp(old->name, "parent") && old->id == parent_id && old->parent_id == 0 && old->group_id == 0);
    CHECK(!strcmp(new->name, "child") && new->id == child_id && new->parent_id == parent_id);
    CHECK(old->created_nanoseconds > 1600000000u * 1000000000ull && new->created_nanoseconds >= old->created_nanoseconds);
    CHECK(old->generation < new->generation && new->generation <= ckstore_snapshot_generation(snapshot));
    CHECK(old->new_pages > new->new_pages && new->new_pages > 0 && old->stored_bytes > 0);
    CHECK(old->region_count == 3 && new->region_count == 3 && ckstore_region_at(old, 3) == NULL);
    const ckstore_region_info *ram = ckstore_region_at(old, 2);
    CHECK(!strcmp(ckstore_region_at(old, 0)->name, "cpu") && ckstore_region_at(old, 0)->kind == CKSTORE_STATE);
    CHECK(!strcmp(ckstore_region_at(new, 1)->name, "disk") && ckstore_region_at(new, 1)->kind == CKSTORE_DISK);
    CHECK(!strcmp(ram->name, "ram") && ram->kind == CKSTORE_MEMORY && ram->page_count == memory_pages);
    CHECK(ram->stored_pages == memory_pages - memory_pages / 5);
    CHECK(old->label_count == 2 && new->label_count == 0 && ckstore_label_at(old, 2) == NULL);
    CHECK(!strcmp(ckstore_label_at(old, 0)->key, "app") && ckstore_label_at(old, 0)->value_length == 0);
    CHECK(!strcmp(ckstore_label_at(old, 1)->value, "two") && ckstore_label_at(old, 1)->key_length == 4);

    ckstore_checkpoint *by_id = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_checkpoint_by_id(snapshot, child_id, &by_id, &error));
    CHECK(!strcmp(ckstore_checkpoint_get_info(by_id)->name, "child"));
    ckstore_region *region = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_region(by_id, "ram", &region, &error));

    /* Everything stays readable in any order of freeing, and after deletion. */
    uint64_t generation = ckstore_snapshot_generation(snapshot);
    const char *doomed[] = {"parent", "child"};
    ckstore_error obstacle;
    uint64_t freed = UINT64_MAX;
    EXPECT(CKSTORE_OK, ckstore_verify(store, NULL, NULL, NULL, NULL, &error));
    EXPECT(CKSTORE_OK, ckstore_delete(store, doomed, 1, NULL, NULL, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_delete(store, doomed, 2, &freed, &obstacle, &error));
    CHECK(!strcmp(error.checkpoint, "parent") && freed == UINT64_MAX);
    check_content(store, "child", "ram", second, memory_pages * page);
    EXPECT(CKSTORE_OK, ckstore_delete(store, doomed + 1, 1, &freed, &obstacle, &error));
    CHECK(obstacle.code == CKSTORE_OK && freed > 0 && freed != UINT64_MAX);
    ckstore_close(store);
    ckstore_list_free(list);
    ckstore_snapshot_free(snapshot);
    ckstore_checkpoint_free(by_id);
    unsigned char *got = allocate(memory_pages * page);
    EXPECT(CKSTORE_OK, ckstore_read_all(region, got, memory_pages * page, NULL, &error));
    CHECK(memcmp(got, second, memory_pages * page) == 0);
    ckstore_region_free(region);

    /* An older state can be asked for; one that is not there is not found. */
    ckstore_open_options options = {.struct_size = sizeof options, .generation = generation + 1000};
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open(path("family"), CKSTORE_READ_ONLY, &options, &store, &error));
    options.generation = 0;
    options.commit_timeout_milliseconds = 5;
    EXPECT(CKSTORE_OK, ckstore_open(path("family"), CKSTORE_READ_ONLY, &options, &store, &error));
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(store, &snapshot, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open_checkpoint(snapshot, "child", &by_id, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open_checkpoint_by_id(snapshot, child_id, &by_id, &error));
    ckstore_snapshot_free(snapshot);
    ckstore_close(store);
    free(first), free(second), free(cpu), free(disk_bytes), free(got);
}

/* ---- groups, and writers that end otherwise ---- */

static ckstore_writer *begin_blob(ckstore *store, const char *name, const char *text) {
    ckstore_writer *writer = begin(store, name, NULL);
    EXPECT(CKSTORE_OK, ckstore_put_blob(writer, "text", CKSTORE_STATE, text, strlen(text), &error));
    return writer;
}

static size_t checkpoint_count(ckstore *store) {
    ckstore_snapshot *snapshot = NULL;
    ckstore_list *list = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(store, &snapshot, &error));
    EXPECT(CKSTORE_OK, ckstore_list_checkpoints(snapshot, &list, &error));
    size_t count = ckstore_list_count(list);
    uint64_t group = count > 0 ? ckstore_list_at(list, 0)->group_id : 0;
    for (size_t index = 0; index < count; index++)
        CHECK(ckstore_list_at(list, index)->group_id == group && group != 0);
    ckstore_snapshot_free(snapshot);
    ckstore_list_free(list);
    return count;
}

static void test_groups(void) {
    ckstore *store = create("groups"), *other = create("other");
    ckstore_writer *group[3] = {
        begin_blob(store, "a", "alpha"), begin_blob(store, "b", "beta"), begin_blob(store, "c", "gamma")};
    ckstore_writer *stranger = begin_blob(other, "d", "delta");
    ckstore_writer *twice[2] = {group[0], group[0]}, *mixed[2] = {group[0], stranger}, *missing[2] = {group[0], NULL};
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(twice, 2, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(mixed, 2, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(missing, 2, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(group, 0, &error));
    ckstore_writer *ended[2] = {group[0], begin_blob(store, "e", "epsilon")};
    ckstore_abort(ended[1]);
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(ended, 2, &error));
    CHECK(checkpoint_count(store) == 0);
    /* The refusals have left the writers as they were. */
    EXPECT(CKSTORE_OK, ckstore_set_label(group[0], "still", "open", &error));
    EXPECT(CKSTORE_OK, ckstore_commit_group(group, 3, &error));
    CHECK(checkpoint_count(store) == 3);
    check_content(store, "a", "text", "alpha", 5);
    check_content(store, "c", "text", "gamma", 5);

    /* One whose name was taken meanwhile keeps the whole group out. */
    ckstore_writer *late[2] = {begin_blob(other, "x", "x"), begin_blob(other, "d", "y")};
    CHECK(ckstore_commit(stranger, NULL) == CKSTORE_OK);
    EXPECT(CKSTORE_EXISTS, ckstore_commit_group(late, 2, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit(late[0], &error));
    ckstore_snapshot *snapshot = NULL;
    ckstore_checkpoint *absent = NULL;
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(other, &snapshot, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open_checkpoint(snapshot, "x", &absent, &error));
    ckstore_snapshot_free(snapshot);

    /* Cancelled, given up, and just freed: nothing remains. A writer may outlive its store's handle. */
    ckstore_writer *cancelled = begin_blob(store, "f", "f"), *freed = begin_blob(store, "g", "g");
    ckstore_cancel(cancelled);
    EXPECT(CKSTORE_CANCELLED, ckstore_put_blob(cancelled, "more", CKSTORE_STATE, "m", 1, &error));
    EXPECT(CKSTORE_CANCELLED, ckstore_commit(cancelled, &error));
    CHECK(checkpoint_count(store) == 3);
    ckstore_close(store);
    ckstore_writer_free(freed);
    ckstore_writer_free(cancelled);
    for (int index = 0; index < 3; index++) ckstore_writer_free(group[index]);
    ckstore_writer_free(ended[1]);
    EXPECT(CKSTORE_OK, ckstore_open(path("groups"), CKSTORE_READ_ONLY, NULL, &store, &error));
    CHECK(checkpoint_count(store) == 3);
    ckstore_close(store);
    ckstore_close(other);
    ckstore_writer_free(stranger), ckstore_writer_free(late[0]), ckstore_writer_free(late[1]);
}

/* Aborting while other threads put pages: they are told, and nothing crashes. */
static void *put_until_refused(void *argument) {
    static unsigned char bytes[16 * page];
    ckstore_error own;
    int code = CKSTORE_OK;
    for (uint64_t first = 0; code == CKSTORE_OK; first = (first + 16) % 8192)
        code = ckstore_put_pages(argument, first, bytes, sizeof bytes, CKSTORE_COPY, &own);
    return (void *)(intptr_t)code;
}

static void test_abort_under_way(void) {
    ckstore *store = create("abort");
    for (int round = 0; round < 6; round++) {
        ckstore_writer *writer = begin(store, "never", NULL);
        ckstore_region_writer *region = NULL;
        pthread_t threads[thread_count];
        EXPECT(CKSTORE_OK, ckstore_add_region(writer, "ram", CKSTORE_MEMORY, 8192 * page, &region, &error));
        for (int index = 0; index < thread_count; index++)
            CHECK(pthread_create(&threads[index], NULL, put_until_refused, region) == 0);
        if (round % 2 == 0) ckstore_cancel(writer);
        ckstore_abort(writer);
        for (int index = 0; index < thread_count; index++) {
            void *code = NULL;
            CHECK(pthread_join(threads[index], &code) == 0);
            CHECK((intptr_t)code == CKSTORE_INVALID_ARGUMENT || (intptr_t)code == CKSTORE_CANCELLED);
        }
        ckstore_writer_free(writer);
    }
    CHECK(checkpoint_count(store) == 0);
    ckstore_close(store);
}

/* ---- refusals ---- */

static void test_stores(void) {
    ckstore *store = NULL, *second = NULL;
    ckstore_create_options options = {.struct_size = sizeof options, .medium_bytes = 64u << 20};
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open(path("absent"), CKSTORE_READ_WRITE, NULL, &store, &error));
    CHECK(store == NULL && strstr(error.medium, "absent") != NULL && strstr(error.message, "absent") != NULL);
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open("tape:/dev/st0", CKSTORE_READ_WRITE, NULL, &store, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open(path("absent"), 0, NULL, &store, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open(path("absent"), CKSTORE_READ_ONLY, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open(NULL, CKSTORE_READ_ONLY, NULL, &store, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open("\xff\xfe", CKSTORE_READ_ONLY, NULL, &store, &error));
    CHECK(ckstore_open(NULL, CKSTORE_READ_ONLY, NULL, &store, NULL) == CKSTORE_INVALID_ARGUMENT);

    /* A size that does not do leaves no file behind. */
    ckstore_create_options small = {.struct_size = sizeof small, .medium_bytes = 1u << 20};
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_create(path("small"), &small, &store, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open(path("small"), CKSTORE_READ_ONLY, NULL, &store, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_create(path("small"), NULL, &store, &error));
    options.segment_bytes = 12345;
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_create(path("small"), &options, &store, &error));
    options.segment_bytes = 0;

    EXPECT(CKSTORE_OK, ckstore_create(path("store"), &options, &store, &error));
    EXPECT(CKSTORE_EXISTS, ckstore_create(path("store"), &options, &second, &error));
    options.force = 1;
    EXPECT(CKSTORE_BUSY, ckstore_create(path("store"), &options, &second, &error));
    ckstore_close(store);
    EXPECT(CKSTORE_OK, ckstore_create(path("store"), &options, &store, &error));

    /* Options of another version of the header. */
    struct {
        ckstore_writer_options known;
        uint64_t later;
    } newer = {.known = {.struct_size = sizeof newer}};
    ckstore_writer *writer = NULL;
    EXPECT(CKSTORE_OK, ckstore_begin(store, "newer", NULL, &newer.known, &writer, &error));
    ckstore_writer_free(writer);
    newer.later = 1;
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "newer", NULL, &newer.known, &writer, &error));
    size_t older = sizeof older;
    EXPECT(CKSTORE_OK, ckstore_begin(store, "older", NULL, (ckstore_writer_options *)&older, &writer, &error));
    ckstore_writer_free(writer);
    ckstore_writer_options bad = {0};
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "bad", NULL, &bad, &writer, &error));
    bad = (ckstore_writer_options){.struct_size = sizeof bad, .thread_count = 100000};
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "bad", NULL, &bad, &writer, &error));

    writer = begin_blob(store, "one", "1");
    EXPECT(CKSTORE_OK, ckstore_commit(writer, &error));
    ckstore_writer_free(writer);
    EXPECT(CKSTORE_EXISTS, ckstore_begin(store, "one", NULL, NULL, &writer, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_begin(store, "two", "zero", NULL, &writer, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "a/b", NULL, NULL, &writer, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "", NULL, NULL, &writer, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "\xc3(", NULL, NULL, &writer, &error));
    ckstore_close(store);

    EXPECT(CKSTORE_OK, ckstore_open(path("store"), CKSTORE_READ_ONLY, NULL, &store, &error));
    EXPECT(CKSTORE_READ_ONLY_STORE, ckstore_begin(store, "two", NULL, NULL, &writer, &error));
    const char *names[] = {"one"};
    EXPECT(CKSTORE_READ_ONLY_STORE, ckstore_delete(store, names, 1, NULL, NULL, &error));
    ckstore_close(store);

    FILE *text = fopen(path("text"), "w");
    CHECK(text != NULL);
    for (int line = 0; line < 100000; line++) CHECK(fputs("This is no store at all.\n", text) >= 0);
    CHECK(fclose(text) == 0);
    EXPECT(CKSTORE_NOT_A_STORE, ckstore_open(path("text"), CKSTORE_READ_ONLY, NULL, &store, &error));
    CHECK(!strcmp(ckstore_error_message(&error), error.message));
}

static void test_null_arguments(void) {
    ckstore *store = create("null");
    ckstore_writer *writer = begin(store, "w", NULL), *none = NULL;
    ckstore_region_writer *region = NULL, *no_region = NULL;
    ckstore_snapshot *snapshot = NULL;
    ckstore_list *list = NULL;
    ckstore_checkpoint *checkpoint = NULL;
    ckstore_region *reader = NULL;
    unsigned char bytes[page] = {0};
    const char *no_names[] = {NULL};
    EXPECT(CKSTORE_OK, ckstore_add_region(writer, "r", CKSTORE_DISK, 3 * page, &region, &error));
    EXPECT(CKSTORE_OK, ckstore_open_snapshot(store, &snapshot, &error));

    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_create(NULL, NULL, &store, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_create(path("x"), NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_delete(NULL, no_names, 1, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_delete(store, NULL, 1, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_delete(store, no_names, 1, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_delete(store, no_names, 0, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_verify(NULL, NULL, NULL, NULL, NULL, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_verify(store, "w", NULL, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(NULL, "n", NULL, NULL, &none, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, NULL, NULL, NULL, &none, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_begin(store, "n", NULL, NULL, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(NULL, "n", CKSTORE_DISK, 0, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, NULL, CKSTORE_DISK, 0, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, "n", CKSTORE_DISK, 0, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, "n", 0, 0, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, "n", 4, 0, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, "n", CKSTORE_MEMORY, 4097, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_add_region(writer, "n", CKSTORE_DISK, CKSTORE_GROWING - 1, &no_region, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_inherit_region(NULL, "n", &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_inherit_region(writer, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(NULL, 0, bytes, page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, 0, NULL, page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, 0, bytes, page, 0, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, 0, bytes, page - 1, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, 3, bytes, page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, UINT64_MAX, bytes, page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_pages(region, 0, bytes, SIZE_MAX, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_page(NULL, 0, bytes, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_page(region, 0, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_page(region, 3, bytes, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_page(region, UINT64_MAX, bytes, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_zeros(NULL, 0, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_zeros(region, 2, 2, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_zeros(region, UINT64_MAX, UINT64_MAX, &error));
    EXPECT(CKSTORE_OK, ckstore_put_zeros(region, 0, 0, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_blob(NULL, "b", CKSTORE_STATE, bytes, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_blob(writer, NULL, CKSTORE_STATE, bytes, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_blob(writer, "b", CKSTORE_STATE, NULL, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_put_blob(writer, "b", CKSTORE_STATE, bytes, SIZE_MAX, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_set_label(NULL, "k", "v", &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_set_label(writer, NULL, "v", &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_set_label(writer, "k", NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit(NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_commit_group(NULL, 1, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_snapshot(NULL, &snapshot, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_snapshot(store, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_list_checkpoints(NULL, &list, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_list_checkpoints(snapshot, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_checkpoint(NULL, "w", &checkpoint, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_checkpoint(snapshot, NULL, &checkpoint, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_checkpoint(snapshot, "w", NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_checkpoint_by_id(NULL, 1, &checkpoint, &error));
    EXPECT(CKSTORE_NOT_FOUND, ckstore_open_checkpoint_by_id(snapshot, 0, &checkpoint, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_open_region(NULL, "r", &reader, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_all(NULL, bytes, page, NULL, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_pages(NULL, 0, bytes, page, &error));
    EXPECT(CKSTORE_INVALID_ARGUMENT, ckstore_read_bytes(NULL, 0, bytes, 1, &error));
    CHECK(none == NULL && no_region == NULL && list == NULL && checkpoint == NULL && reader == NULL);

    CHECK(ckstore_is_read_only(NULL) == 1 && ckstore_writer_id(NULL) == 0 && ckstore_snapshot_generation(NULL) == 0);
    CHECK(ckstore_list_count(NULL) == 0 && ckstore_list_at(NULL, 0) == NULL && ckstore_region_at(NULL, 0) == NULL);
    CHECK(ckstore_label_at(NULL, 0) == NULL && ckstore_checkpoint_get_info(NULL) == NULL);
    CHECK(ckstore_region_get_info(NULL) == NULL && !strcmp(ckstore_error_message(NULL), "ok"));
    ckstore_close(NULL), ckstore_writer_free(NULL), ckstore_abort(NULL), ckstore_cancel(NULL);
    ckstore_snapshot_free(NULL), ckstore_list_free(NULL), ckstore_checkpoint_free(NULL), ckstore_region_free(NULL);

    /* A refused call has left the writer as it was: all of this is still to be done. */
    EXPECT(CKSTORE_OK, ckstore_put_page(region, 1, bytes, &error));
    EXPECT(CKSTORE_OK, ckstore_commit(writer, &error));
    ckstore_writer_free(writer);
    ckstore_snapshot_free(snapshot);
    ckstore_close(store);
}

/* ---- damage ---- */

static void count_damage(void *context, const ckstore_error *damage) {
    CHECK(damage->code == CKSTORE_CORRUPT && damage->message[0] != 0);
    ++*(int *)context;
}

/* Changes one bit of the copy of `needle` in a file; small stores have their content in the first 16 MiB. */
static void damage_file(const char *name, const void *needle, size_t length) {
    size_t size = 16u << 20, found = 0;
    unsigned char *start = allocate(size);
    FILE *file = fopen(path(name), "r+b");
    CHECK(file != NULL && fread(start, 1, size, file) == size);
    while (found + length <= size && memcmp(start + found, needle, length) != 0) found++;
    CHECK(found + length <= size);
    CHECK(fseek(file, (long)found, SEEK_SET) == 0 && fputc(start[found] ^ 4, file) != EOF && fclose(file) == 0);
    free(start);
}

static void test_damage(void) {
    ckstore *store = create("damage");
    unsigned char *memory = allocate(64 * page), got[page];
    fill(memory, 64, 9);
    ckstore_writer *writer = begin(store, "hurt", NULL);
    ckstore_region_writer *region = NULL;
    EXPECT(CKSTORE_OK, ckstore_add_region(writer, "ram", CKSTORE_MEMORY, 64 * page, &region, &error));
    EXPECT(CKSTORE_OK, ckstore_put_pages(region, 0, memory, 64 * page, CKSTORE_COPY, &error));
    EXPECT(CKSTORE_OK, ckstore_commit(writer, &error));
    ckstore_writer_free(writer);
    ckstore_close(store);

    damage_file("damage", memory + 21 * page, 256);
    EXPECT(CKSTORE_OK, ckstore_open(path("damage"), CKSTORE_READ_ONLY, NULL, &store, &error));
    ckstore_region *reader = open_region(store, "hurt", "ram");
    EXPECT(CKSTORE_CORRUPT, ckstore_read_pages(reader, 21, got, page, &error));
    CHECK(!strcmp(error.checkpoint, "hurt") && !strcmp(error.region, "ram") && error.first_page <= 21);
    CHECK(error.page_count > 0 && error.first_page + error.page_count > 21 && error.message[0] != 0);
    EXPECT(CKSTORE_OK, ckstore_read_pages(reader, 63, got, page, &error));
    CHECK(memcmp(got, memory + 63 * page, page) == 0);
    int count = 0;
    ckstore_verify_options options = {.struct_size = sizeof options, .checks_pages = 1};
    EXPECT(CKSTORE_CORRUPT, ckstore_verify(store, "hurt", &options, count_damage, &count, &error));
    CHECK(count > 0);
    ckstore_region_free(reader);
    ckstore_close(store);
    free(memory);
}

static void test_texts(void) {
    CHECK(ckstore_abi_version() == CKSTORE_ABI_VERSION);
    CHECK(!strcmp(ckstore_code_name(CKSTORE_OK), "ok") && !strcmp(ckstore_code_name(CKSTORE_NOT_FOUND), "not-found"));
    CHECK(!strcmp(ckstore_code_name(-1), "other"));
    for (int code = CKSTORE_OK; code < CKSTORE_OTHER; code++) CHECK(strcmp(ckstore_code_name(code), "other") != 0);

    /* A place that is too long for its field is cut at the end of a character and says so. */
    char far[1400] = "/";
    for (int count = 0; count < 600; count++) strcat(far, "\xc3\xa4");
    ckstore *store = NULL;
    int code = ckstore_open(far, CKSTORE_READ_ONLY, NULL, &store, &error);
    CHECK(code != CKSTORE_OK && error.code == code);
    size_t length = strlen(error.medium);
    CHECK(length < sizeof error.medium && length > sizeof error.medium - 8);
    CHECK(!strcmp(error.medium + length - 3, "...") && !memcmp(error.medium + length - 5, "\xc3\xa4", 2));
}

int main(int argument_count, char **arguments) {
    if (argument_count != 2) return 2;
    snprintf(directory, sizeof directory, "%s", arguments[1]);
    test_texts();
    test_stores();
    test_null_arguments();
    test_parent_and_child();
    test_groups();
    test_abort_under_way();
    test_damage();
    return 0;
}
