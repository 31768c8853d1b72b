/* A file system in user space that nobody can change, on libfuse's low-level interface: what Swift can't express of it (bit fields,
 * tables of functions, macros), and no more.
 *
 * Invariants:
 * - Calls that can fail return a negative errno value.
 * - Every request that a handler's function is given is answered by exactly one ck_reply function, on any thread.
 * - Nothing that is handed to a reply is kept after it has returned.
 * - Nothing that would change the file system gets as far as a handler.
 */
#ifndef CSTOREMOUNT_H
#define CSTOREMOUNT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

struct ck_mount;
struct ck_request;

enum ck_node_kind { CK_NODE_FOLDER, CK_NODE_FILE, CK_NODE_LINK };

/* The inode of the mount point. */
enum { CK_ROOT_INODE = 1 };

/* What a name stands for. Owner and group are this process's. */
struct ck_node {
    uint64_t inode;
    uint64_t size;        /* bytes */
    uint64_t blocks;      /* of 512 bytes, that are stored */
    uint64_t nanoseconds; /* of its times, since 1970-01-01 UTC */
    enum ck_node_kind kind;
    uint32_t links;
    /* How long the kernel may go on without asking again. */
    double name_seconds, attribute_seconds;
};

struct ck_space {
    uint64_t block_size, blocks, free_blocks, files;
};

/* What answers requests. Functions are called by the threads in ck_mount_serve. */
struct ck_mount_handler {
    void *context;
    void (*look_up)(void *context, struct ck_request *, uint64_t folder, const char *name);
    void (*attributes)(void *context, struct ck_request *, uint64_t inode);
    void (*read_link)(void *context, struct ck_request *, uint64_t inode);
    /* `for_writing`: by a program that must be kept from sharing what it writes; only where the options allow that at all. */
    void (*open_file)(void *context, struct ck_request *, uint64_t inode, bool for_writing);
    /* Not answered by the handler, as close_folder. */
    void (*close_file)(void *context, uint64_t handle);
    void (*read_file)(void *context, struct ck_request *, uint64_t handle, uint64_t offset, size_t size);
    void (*seek)(void *context, struct ck_request *, uint64_t handle, uint64_t offset, bool for_hole);
    void (*open_folder)(void *context, struct ck_request *, uint64_t inode);
    void (*close_folder)(void *context, uint64_t handle);
    /* The entries from number `first` on, as many as fit `size` bytes; `with_attributes`: see ck_listing_add. */
    void (*list)(void *context, struct ck_request *, uint64_t handle, uint64_t first, size_t size, bool with_attributes);
    void (*space)(void *context, struct ck_request *);
};

struct ck_mount_options {
    const char *source; /* what the table of mounts shows */
    const char *path;
    bool allows_others;
    /* Not mounted as read-only: files may be opened for reading and writing, so that they can be mapped privately. Everything that
     * would change something is refused here all the same. */
    bool private_writes;
};

/* What the kernel may do with the pages of an open file. */
enum ck_caching {
    CK_CACHE_NONE,    /* every read comes here */
    CK_CACHE_KEEP,    /* what it has cached stays good */
    CK_CACHE_PRIVATE, /* that too, for private mappings; it refuses mappings that share what is written */
};

/* Which mount is at a path: two that are there at different times differ. */
struct ck_mount_identity {
    uint64_t mount;
    uint32_t device_major, device_minor;
};

/* Mounts. Requests wait until threads serve them. `identity` says later whether the path still leads to it. On failure `message` has
 * what libfuse said, perhaps nothing. */
int ck_mount_start(const struct ck_mount_options *options, const struct ck_mount_handler *handler, struct ck_mount **result,
                   struct ck_mount_identity *identity, char *message, size_t message_room);
/* Serves requests until the file system has been unmounted and nobody uses it any more: 0. Several threads may. */
int ck_mount_serve(struct ck_mount *mount);
/* Frees what ck_mount_start made, once no thread serves any more. */
void ck_mount_end(struct ck_mount *mount);
/* Takes the file system at `path` off, if it is that one; else -EINVAL. -EBUSY while somebody uses it, unless `detach`: then its name is
 * gone at once, and itself when it is not used any more. Users other than root go through fusermount3. */
int ck_unmount(const char *path, const struct ck_mount_identity *identity, bool detach);

/* The mount that `path` is on. Asks the file system nothing: it need not be served. */
int ck_identify_mount(const char *path, struct ck_mount_identity *identity);

/* True when something is mounted at `path` itself. */
int ck_is_mount_point(const char *path);
/* The kernel reads up to this much ahead on the file system at `path`. */
int ck_set_read_ahead(const char *path, unsigned kibibytes);
/* One line in the system's log. */
void ck_log_to_system(const char *line);

void ck_reply_error(struct ck_request *, int error);
void ck_reply_node(struct ck_request *, const struct ck_node *node);
/* There is no such name, nor for `seconds` from now on. */
void ck_reply_no_name(struct ck_request *, double seconds);
void ck_reply_attributes(struct ck_request *, const struct ck_node *node);
void ck_reply_link(struct ck_request *, const char *target);
void ck_reply_file(struct ck_request *, uint64_t handle, enum ck_caching caching);
/* `is_constant`: what the kernel has cached of the folder stays good. */
void ck_reply_folder(struct ck_request *, uint64_t handle, bool is_constant);
void ck_reply_pieces(struct ck_request *, const struct iovec *pieces, size_t count);
void ck_reply_offset(struct ck_request *, uint64_t offset);
void ck_reply_space(struct ck_request *, const struct ck_space *space);

/* Adds an entry to a listing, whose number is `next` - 1. With attributes, it also counts as looked up. Returns the bytes that it
 * takes, or 0 when it does not fit. */
size_t ck_listing_add(struct ck_request *, void *to, size_t room, const char *name, const struct ck_node *node, uint64_t next,
                      bool with_attributes);

#endif
