/* ckstore: a crash-safe store of checkpoints of virtual machines and processes, for C and C++.
 *
 * Link with `pkg-config --cflags --libs ckstore`. An example, saving guest memory and reading it back:
 *
 *     ckstore_error error;
 *     ckstore *store;
 *     ckstore_writer *writer;
 *     ckstore_region_writer *memory;
 *     if (ckstore_open("/var/lib/vm.ck", CKSTORE_READ_WRITE, NULL, &store, &error)) goto failed;
 *     if (ckstore_begin(store, "monday", NULL, NULL, &writer, &error)) goto failed;
 *     if (ckstore_add_region(writer, "ram", CKSTORE_MEMORY, ram_bytes, &memory, &error)) goto failed;
 *     if (ckstore_put_pages(memory, 0, ram, ram_bytes, CKSTORE_COPY, &error)) goto failed;
 *     if (ckstore_put_blob(writer, "cpu", CKSTORE_STATE, &cpu, sizeof cpu, &error)) goto failed;
 *     if (ckstore_commit(writer, &error)) goto failed;            // durable from here on
 *     ckstore_writer_free(writer);
 *
 *     ckstore_snapshot *snapshot;
 *     ckstore_checkpoint *monday;
 *     ckstore_region *region;
 *     if (ckstore_open_snapshot(store, &snapshot, &error)) goto failed;
 *     if (ckstore_open_checkpoint(snapshot, "monday", &monday, &error)) goto failed;
 *     if (ckstore_open_region(monday, "ram", &region, &error)) goto failed;
 *     if (ckstore_read_all(region, ram, ram_bytes, NULL, &error)) goto failed;
 *     ...
 * failed:
 *     fprintf(stderr, "%s\n", error.message);
 *
 * Rules that hold for every function
 *
 * Results    Functions that return `int` return a `ckstore_code`: 0 (CKSTORE_OK) or what went wrong. When they fail, they leave
 *            their other results as they were, and what a reader's buffer holds is undefined.
 * Errors     `error` may be NULL. Otherwise it is overwritten by every call: its code with the result, its texts with empty
 *            strings on success. It needs no preparation and no clean-up. Don't share one between threads.
 * Arguments  A NULL where none is allowed, a text that is not UTF-8, an unknown flag, and a size or range that does not fit are
 *            answered with CKSTORE_INVALID_ARGUMENT and change nothing. Handles must come from this library and not have been
 *            freed; that can't be checked. Texts are copied; no function keeps a pointer of the caller's.
 * Threads    A handle may be used by any number of threads at once, unless a function says otherwise. Freeing one is its last
 *            use. All functions that return `int` may block on I/O.
 * Ownership  Each handle that a function hands out is freed with the function that its comment names, in any order: a store
 *            is closed on the medium when it and all writers, snapshots, checkpoints and regions that came from it have been
 *            freed. Freeing NULL does nothing.
 * Processes  Any number of processes may have a store open, reading and writing. Handles must not be used in a child after
 *            `fork`. The library catches SIGBUS and SIGSEGV for faults in its own mappings and hands on all others.
 * Sizes      A page has 4096 bytes. Lengths and offsets are in bytes and counts are in pages where the name says so.
 * Versions   Within an ABI version (and a SONAME) functions, codes and struct fields are only added, and fields only at the end
 *            of structs that the library allocates or that begin with `struct_size`, which the caller sets to `sizeof`; fields
 *            that are zero mean the default. So `{.struct_size = sizeof options}` does as if NULL had been given.
 */
#ifndef CKSTORE_H
#define CKSTORE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The version of this header. */
#define CKSTORE_ABI_VERSION 1

/* The version of the library that is linked; it should be equal to CKSTORE_ABI_VERSION. */
uint32_t ckstore_abi_version(void);

#define CKSTORE_PAGE_SIZE 4096

/* ---- errors ---- */

/* What a function returns. The numbers never change; new ones may be added. */
typedef enum ckstore_code {
    CKSTORE_OK = 0,
    CKSTORE_NOT_A_STORE = 1,       /* the medium holds no store */
    CKSTORE_CORRUPT = 2,           /* stored bytes are damaged, or they contradict each other */
    CKSTORE_TRUNCATED = 3,         /* the medium is shorter than the store on it */
    CKSTORE_UNSUPPORTED = 4,       /* the store uses a format version or feature that this library does not know */
    CKSTORE_WRONG_BASE = 5,        /* the parent of a new checkpoint is not in the store any more */
    CKSTORE_NO_SPACE = 6,          /* no room on the medium or in the store */
    CKSTORE_BUSY = 7,              /* another process holds a lock for longer than the caller wanted to wait */
    CKSTORE_READ_ONLY_STORE = 8,   /* the store was opened for reading only, or can be */
    CKSTORE_STORE_FAILED = 9,      /* a flush failed earlier through this handle: close the store and open it again */
    CKSTORE_NOT_FOUND = 10,        /* there is no such checkpoint, region or medium */
    CKSTORE_EXISTS = 11,           /* a checkpoint or medium of that name is there already */
    CKSTORE_INVALID_ARGUMENT = 12, /* what was handed in can't be used: a NULL, a bad name, size or range */
    CKSTORE_IO_FAILED = 13,        /* the medium failed to read or write */
    CKSTORE_CANCELLED = 14,        /* the checkpoint was cancelled by ckstore_cancel */
    CKSTORE_OTHER = 15,            /* a failure that this version has no number for: see the message */
    CKSTORE_PERMISSION = 16        /* the system does not let this process do that */
} ckstore_code;

/* Stands for a number that is not known or does not apply. */
#define CKSTORE_NONE UINT64_MAX

/* What went wrong, where, and what to do about it. Texts are UTF-8 and end with a zero byte; one that does not fit is cut
 * and ends in "...". The size does not change within an ABI version. */
typedef struct ckstore_error {
    int32_t code;             /* a ckstore_code */
    uint32_t reserved_flags;  /* 0 */
    uint64_t offset_bytes;    /* where on the medium, or CKSTORE_NONE */
    uint64_t first_page;      /* the pages of the region concerned, or CKSTORE_NONE */
    uint64_t page_count;      /* 0 when no pages are concerned */
    uint64_t reserved[4];     /* 0 */
    char message[1024];       /* everything in one line, for people */
    char reason[512];         /* what went wrong, as a phrase */
    char remedy[512];         /* what to do about it, as a sentence; may be empty */
    char medium[512];         /* the store's medium; empty when none is concerned */
    char checkpoint[256];     /* the checkpoint concerned, or empty */
    char region[256];         /* the region concerned, or empty */
} ckstore_error;

/* The message of an error, or what its code means when it has none. Never NULL; valid as long as `error` is.
 * Allowed for NULL. */
const char *ckstore_error_message(const ckstore_error *error);

/* A code as a word such as "not-found", for logs. Never NULL; valid for ever. */
const char *ckstore_code_name(int code);

/* ---- stores ---- */

/* An open store. Free with ckstore_close. */
typedef struct ckstore ckstore;

typedef struct ckstore_create_options {
    size_t struct_size;
    uint64_t medium_bytes;  /* the size of a new file or memory; 0 for a device: all of it */
    uint64_t segment_bytes; /* 128 KiB to 1 GiB, best a multiple of 2 MiB; 0: 2 MiB */
    uint32_t force;         /* not 0: replace a store or file that is there (what it holds is lost) */
    uint32_t reserved;      /* 0 */
} ckstore_create_options;

/* Makes an empty store and opens it for reading and writing. Durable on return. Files get mode 0600.
 *
 * `locator` is a path, or a kind and a path or name: "file:/var/lib/vm.ck", "raw:/dev/sdb1", "ram:name" (shared memory),
 * "flash:/mnt/pmem0/vm.ck" (persistent memory). Everything but a device needs options->medium_bytes.
 *
 * CKSTORE_EXISTS when something is there and `force` is not given; CKSTORE_BUSY when it is in use, even then;
 * CKSTORE_INVALID_ARGUMENT when the medium is too small. A file that was made here is removed on failure. */
int ckstore_create(const char *locator, const ckstore_create_options *options, ckstore **store, ckstore_error *error);

typedef enum ckstore_access { CKSTORE_READ_ONLY = 1, CKSTORE_READ_WRITE = 2 } ckstore_access;

typedef struct ckstore_open_options {
    size_t struct_size;
    uint64_t generation;                 /* an older state to look at, for reading only; 0: the newest */
    uint64_t commit_timeout_milliseconds; /* how long to wait for another process's commit; 0: 60 s; CKSTORE_NONE: for ever */
} ckstore_open_options;

/* Opens a store, in constant time. `access` is a ckstore_access; `options` may be NULL.
 *
 * CKSTORE_NOT_FOUND, CKSTORE_NOT_A_STORE, CKSTORE_CORRUPT, CKSTORE_TRUNCATED, CKSTORE_UNSUPPORTED, CKSTORE_BUSY (it is being
 * created or resized). A store may turn out to be readable only: see ckstore_is_read_only. */
int ckstore_open(
    const char *locator, int access, const ckstore_open_options *options, ckstore **store, ckstore_error *error);

/* Gives the handle up. Writers that have not committed leave nothing behind; everything committed is durable already. */
void ckstore_close(ckstore *store);

/* 1 when nothing can be written through this handle, else 0; 1 for NULL. Does not block. */
int ckstore_is_read_only(const ckstore *store);

/* Deletes checkpoints, all or none of them, and frees the space that nothing uses any more. Durable on return. Works on a
 * full store. Reads the index of all remaining checkpoints. Snapshots that are open go on reading.
 *
 * `freed_segments` may be NULL. `obstacle` may be NULL; on success its code tells why space could not be freed although the
 * checkpoints are gone (CKSTORE_CORRUPT: another checkpoint is damaged), or is CKSTORE_OK.
 * CKSTORE_NOT_FOUND when one of them is not there. */
int ckstore_delete(
    ckstore *store, const char *const *names, size_t name_count, uint64_t *freed_segments, ckstore_error *obstacle,
    ckstore_error *error);

typedef struct ckstore_verify_options {
    size_t struct_size;
    uint32_t checks_pages; /* not 0: also decompress everything and compare every page with its hash */
    uint32_t thread_count; /* 0: one for each core */
} ckstore_verify_options;

/* Called for each damaged place, by the thread that called ckstore_verify; `damage` is valid until it returns. */
typedef void (*ckstore_damage_function)(void *context, const ckstore_error *damage);

/* Reads one checkpoint (`name`), or all of them and the catalog (NULL), and checks every stored byte once. Changes nothing.
 * `options` and `on_damage` may be NULL.
 *
 * CKSTORE_OK: all is sound. CKSTORE_CORRUPT: there is damage; `error` tells the first of it. CKSTORE_NOT_FOUND. */
int ckstore_verify(
    ckstore *store, const char *name, const ckstore_verify_options *options, ckstore_damage_function on_damage,
    void *context, ckstore_error *error);

/* ---- writing ---- */

/* A checkpoint being written. Free with ckstore_writer_free. */
typedef struct ckstore_writer ckstore_writer;

/* A region of a checkpoint being written. Belongs to its writer: valid until ckstore_writer_free, never freed itself. */
typedef struct ckstore_region_writer ckstore_region_writer;

typedef enum ckstore_kind {
    CKSTORE_MEMORY = 1, /* guest memory; a multiple of the page size */
    CKSTORE_DISK = 2,   /* the contents of a disk */
    CKSTORE_STATE = 3   /* the state of devices or a process, opaque to the store */
} ckstore_kind;

/* The length of a region that ends behind the last page that is put. */
#define CKSTORE_GROWING UINT64_MAX

typedef struct ckstore_writer_options {
    size_t struct_size;
    uint32_t thread_count; /* threads that compress and write for this checkpoint, at most 256; 0: one for each core */
    uint32_t reserved;     /* 0 */
} ckstore_writer_options;

/* Begins a checkpoint. Nothing of it is visible or durable before its commit; without one it leaves no trace.
 *
 * `name` has 1 to 255 bytes, no control characters and no '/'. `parent` names the checkpoint whose pages stand wherever
 * nothing else is put, or is NULL. `options` may be NULL.
 * CKSTORE_EXISTS (the name), CKSTORE_NOT_FOUND (the parent), CKSTORE_READ_ONLY_STORE. */
int ckstore_begin(
    ckstore *store, const char *name, const char *parent, const ckstore_writer_options *options, ckstore_writer **writer,
    ckstore_error *error);

/* The identity of the checkpoint, as snapshots will show it; chosen at random, never 0. 0 for NULL. Does not block. */
uint64_t ckstore_writer_id(const ckstore_writer *writer);

/* Adds a region, or finds the one of that name that was added before. `kind` is a ckstore_kind.
 *
 * With a parent, pages that are never put are what they are in the parent's region of that name; else they are zero. A
 * region of the parent that is not added is not part of the new checkpoint: see ckstore_inherit_region.
 * `length_bytes` may be CKSTORE_GROWING. Does no I/O. */
int ckstore_add_region(
    ckstore_writer *writer, const char *name, int kind, uint64_t length_bytes, ckstore_region_writer **region,
    ckstore_error *error);

/* Takes over a region of the parent as it is. CKSTORE_NOT_FOUND when the parent has none of that name. Does no I/O. */
int ckstore_inherit_region(ckstore_writer *writer, const char *name, ckstore_error *error);

/* How bytes in memory are to be treated. */
typedef enum ckstore_put_mode {
    CKSTORE_COPY = 1,  /* they may change meanwhile: each page is copied once, and that copy is what counts */
    CKSTORE_STABLE = 2 /* nobody can change them until the call returns; saves the copy. A page that does change is damaged */
} ckstore_put_mode;

/* Puts consecutive pages from memory, on several threads; best for many pages at a time. On return the caller may reuse the
 * memory. Not durable before the commit.
 *
 * `length_bytes` is a multiple of the page size, except that the bytes may end within a page where the region ends.
 * `mode` is a ckstore_put_mode. May be called by any thread. Of a page that several threads put at once, one content stays; of
 * calls that come after each other, the last. */
int ckstore_put_pages(
    ckstore_region_writer *region, uint64_t first_page, const void *bytes, size_t length_bytes, int mode,
    ckstore_error *error);

/* Puts one page of 4096 bytes, which are copied before this returns. For pages that come one by one, in any order: they are
 * gathered, compressed together, and a failure to write them may be told by a later call or the commit. May be called by
 * any thread. Another function of this family that puts the same page later replaces it. */
int ckstore_put_page(ckstore_region_writer *region, uint64_t page, const void *bytes, ckstore_error *error);

/* Makes pages zero, whatever the parent has there. May be called by any thread. */
int ckstore_put_zeros(
    ckstore_region_writer *region, uint64_t first_page, uint64_t page_count, ckstore_error *error);

/* Adds a region with these bytes as its whole content: device state and the like. `bytes` may be NULL when `length_bytes`
 * is 0. May be called by any thread. */
int ckstore_put_blob(
    ckstore_writer *writer, const char *name, int kind, const void *bytes, size_t length_bytes, ckstore_error *error);

/* Sets a label; it replaces an earlier one of that key. Keys have 1 to 255 bytes (checked by the commit). Does no I/O. */
int ckstore_set_label(ckstore_writer *writer, const char *key, const char *value, ckstore_error *error);

/* Commits: on return the checkpoint is durable and visible to everybody. Waits for calls on this writer that are under way in
 * other threads. The writer ends in any case and is good for ckstore_writer_free only.
 *
 * On failure nothing of the checkpoint remains, with one exception: after CKSTORE_STORE_FAILED whether it is there shows when
 * the store is opened again. CKSTORE_EXISTS (the name was taken meanwhile), CKSTORE_WRONG_BASE (the parent was deleted),
 * CKSTORE_NO_SPACE, CKSTORE_CANCELLED, CKSTORE_BUSY. */
int ckstore_commit(ckstore_writer *writer, ckstore_error *error);

/* Commits several checkpoints of one store together: on return all are durable and visible; on failure none is, as
 * for ckstore_commit. CKSTORE_INVALID_ARGUMENT, when a writer is named twice, has ended or is of another store: nothing has
 * happened then, and the writers go on. */
int ckstore_commit_group(ckstore_writer *const *writers, size_t writer_count, ckstore_error *error);

/* Makes calls on this writer that are under way, and all later ones with the commit, return CKSTORE_CANCELLED. Meant to be
 * called while other threads are busy. Does not block. Too late for a commit that has got past its preparations. */
void ckstore_cancel(ckstore_writer *writer);

/* Gives the checkpoint up: nothing of it remains. Waits for calls under way (ckstore_cancel first makes that quick).
 * Harmless when the writer has ended. */
void ckstore_abort(ckstore_writer *writer);

/* Frees a writer and its region writers; gives the checkpoint up if it was not committed. No other thread may be using them. */
void ckstore_writer_free(ckstore_writer *writer);

/* ---- looking at a store ---- */

/* One state of a store. What it shows stays readable, whatever is deleted meanwhile, until it and all lists, checkpoints and
 * regions from it are freed; the space of deleted checkpoints comes back only then. Free with ckstore_snapshot_free. */
typedef struct ckstore_snapshot ckstore_snapshot;

/* Takes a snapshot of the newest state (or of the generation that the store was opened with), in constant time. */
int ckstore_open_snapshot(ckstore *store, ckstore_snapshot **snapshot, ckstore_error *error);

/* Frees a snapshot. */
void ckstore_snapshot_free(ckstore_snapshot *snapshot);

/* The number of the state: each commit has the next one. 0 for NULL. Does not block. */
uint64_t ckstore_snapshot_generation(const ckstore_snapshot *snapshot);

/* What a checkpoint is. Allocated by the library; it and its texts live as long as the list or checkpoint that it came from. */
typedef struct ckstore_checkpoint_info {
    uint64_t id;                  /* never 0 */
    uint64_t parent_id;           /* the checkpoint that it was taken over (it may be deleted since), or 0 */
    uint64_t created_nanoseconds; /* when it was begun, since 1970-01-01 UTC */
    uint64_t generation;          /* the state that it appeared in */
    uint64_t group_id;            /* equal for checkpoints that were committed together; 0: it was alone */
    uint64_t new_pages;           /* pages that it stored itself */
    uint64_t stored_bytes;        /* what they take */
    const char *name;
    size_t region_count;          /* see ckstore_region_at */
    size_t label_count;           /* see ckstore_label_at */
    const void *internal;
} ckstore_checkpoint_info;

/* What a region is. Allocated by the library, lives as long as what it came from. */
typedef struct ckstore_region_info {
    const char *name;
    int32_t kind;          /* a ckstore_kind */
    uint32_t reserved;     /* 0 */
    uint64_t length_bytes;
    uint64_t page_count;   /* the last page may be partly filled */
    uint64_t stored_pages; /* pages that are not zero */
    uint64_t new_pages;    /* pages that this checkpoint stored itself */
} ckstore_region_info;

/* A label. Allocated by the library, lives as long as what it came from. */
typedef struct ckstore_label {
    const char *key;
    const char *value;
    size_t key_length;   /* in bytes, without the zero byte at the end: */
    size_t value_length; /* programs in other languages can put zero bytes inside */
} ckstore_label;

/* Region or label number `index` (from 0, ascending by name or key); NULL for NULL and behind the last. Do not block. */
const ckstore_region_info *ckstore_region_at(const ckstore_checkpoint_info *info, size_t index);
const ckstore_label *ckstore_label_at(const ckstore_checkpoint_info *info, size_t index);

/* The checkpoints of a snapshot. Free with ckstore_list_free. */
typedef struct ckstore_list ckstore_list;

/* Lists all checkpoints by the time they were begun, the oldest first. One read for each. */
int ckstore_list_checkpoints(const ckstore_snapshot *snapshot, ckstore_list **list, ckstore_error *error);

/* How many there are; 0 for NULL. Does not block. */
size_t ckstore_list_count(const ckstore_list *list);

/* Checkpoint number `index`, from 0; NULL for NULL and behind the last. Does not block. */
const ckstore_checkpoint_info *ckstore_list_at(const ckstore_list *list, size_t index);

/* Frees a list and all that was got from it. */
void ckstore_list_free(ckstore_list *list);

/* ---- reading ---- */

/* A checkpoint opened for reading. Free with ckstore_checkpoint_free. */
typedef struct ckstore_checkpoint ckstore_checkpoint;

/* Opens the checkpoint of that name. CKSTORE_NOT_FOUND. */
int ckstore_open_checkpoint(
    const ckstore_snapshot *snapshot, const char *name, ckstore_checkpoint **checkpoint, ckstore_error *error);

/* Opens the checkpoint with that id. CKSTORE_NOT_FOUND. */
int ckstore_open_checkpoint_by_id(
    const ckstore_snapshot *snapshot, uint64_t id, ckstore_checkpoint **checkpoint, ckstore_error *error);

/* What the checkpoint is; valid until it is freed. NULL for NULL. Does not block. */
const ckstore_checkpoint_info *ckstore_checkpoint_get_info(const ckstore_checkpoint *checkpoint);

/* Frees a checkpoint and what ckstore_checkpoint_get_info has returned; its regions stay. */
void ckstore_checkpoint_free(ckstore_checkpoint *checkpoint);

/* A region opened for reading. It keeps a few MiB of decoded index, so that random reads are quick. Free with
 * ckstore_region_free. */
typedef struct ckstore_region ckstore_region;

/* Opens the region of that name. Does no I/O. CKSTORE_NOT_FOUND. */
int ckstore_open_region(
    const ckstore_checkpoint *checkpoint, const char *name, ckstore_region **region, ckstore_error *error);

/* What the region is; valid until it is freed. NULL for NULL. Does not block. */
const ckstore_region_info *ckstore_region_get_info(const ckstore_region *region);

/* Frees a region and what ckstore_region_get_info has returned. */
void ckstore_region_free(ckstore_region *region);

/* Every byte that the following functions return with CKSTORE_OK has been verified. CKSTORE_CORRUPT where the region is damaged
 * (`error` tells the pages), CKSTORE_IO_FAILED. May be called by any thread. */

/* Copies whole pages into `buffer`; `buffer_bytes`, a multiple of the page size, tells how many. Behind the end of a partly filled
 * last page there are zeros. CKSTORE_INVALID_ARGUMENT behind the region's last page. */
int ckstore_read_pages(
    ckstore_region *region, uint64_t first_page, void *buffer, size_t buffer_bytes, ckstore_error *error);

/* Copies `length_bytes` bytes from an offset on, any bytes. CKSTORE_INVALID_ARGUMENT when that reaches behind the region's end. */
int ckstore_read_bytes(
    ckstore_region *region, uint64_t offset_bytes, void *buffer, size_t length_bytes, ckstore_error *error);

typedef struct ckstore_read_options {
    size_t struct_size;
    uint32_t thread_count; /* at most 256; 0: one for each core */
    uint32_t is_zeroed;    /* not 0: the buffer is known to be zero, so zero pages are not touched */
} ckstore_read_options;

/* Reads the whole region into memory, on several threads. `buffer` must hold page_count pages; nothing behind them is
 * touched. `options` may be NULL. */
int ckstore_read_all(
    ckstore_region *region, void *buffer, size_t buffer_bytes, const ckstore_read_options *options, ckstore_error *error);

#ifdef __cplusplus
}
#endif

#endif
