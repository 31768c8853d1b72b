/* Answers to requests. One that can't be delivered is nobody's to tell: whoever asked has been killed, or the file system has been
 * taken off. */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <fuse_lowlevel.h>
#include <sys/stat.h>
#include <sys/statvfs.h>

#include "mount_internal.h"

static fuse_req_t unwrapped(struct ck_request *request) { return (fuse_req_t)request; }

static mode_t mode_of(const struct ck_mount *mount, enum ck_node_kind kind) {
    switch (kind) {
    case CK_NODE_FOLDER: return S_IFDIR | (mount->others ? 0555 : 0500);
    case CK_NODE_FILE: return S_IFREG | (mount->others ? 0444 : 0400);
    case CK_NODE_LINK: return S_IFLNK | 0777;
    }
    return 0;
}

static struct stat status_of(struct ck_request *request, const struct ck_node *node) {
    const struct ck_mount *mount = fuse_req_userdata(unwrapped(request));
    struct timespec time = {.tv_sec = (time_t)(node->nanoseconds / 1000000000), .tv_nsec = (long)(node->nanoseconds % 1000000000)};
    return (struct stat){
        .st_ino = node->inode,
        .st_mode = mode_of(mount, node->kind),
        .st_nlink = node->links,
        .st_uid = mount->owner,
        .st_gid = mount->group,
        .st_size = (off_t)node->size,
        .st_blocks = (blkcnt_t)node->blocks,
        .st_blksize = 65536,
        .st_atim = time,
        .st_mtim = time,
        .st_ctim = time,
    };
}

static struct fuse_entry_param entry_of(struct ck_request *request, const struct ck_node *node) {
    return (struct fuse_entry_param){
        .ino = node->inode,
        .attr = status_of(request, node),
        .attr_timeout = node->attribute_seconds,
        .entry_timeout = node->name_seconds,
    };
}

void ck_reply_error(struct ck_request *request, int error) { fuse_reply_err(unwrapped(request), error); }

void ck_reply_node(struct ck_request *request, const struct ck_node *node) {
    struct fuse_entry_param entry = entry_of(request, node);
    fuse_reply_entry(unwrapped(request), &entry);
}

void ck_reply_no_name(struct ck_request *request, double seconds) {
    struct fuse_entry_param entry = {.entry_timeout = seconds};
    fuse_reply_entry(unwrapped(request), &entry);
}

void ck_reply_attributes(struct ck_request *request, const struct ck_node *node) {
    struct stat status = status_of(request, node);
    fuse_reply_attr(unwrapped(request), &status, node->attribute_seconds);
}

void ck_reply_link(struct ck_request *request, const char *target) { fuse_reply_readlink(unwrapped(request), target); }

void ck_reply_file(struct ck_request *request, uint64_t handle, enum ck_caching caching) {
    /* Of a file with direct I/O the kernel makes no mapping that is shared, since the connection does not allow those; a private one
     * goes through the page cache as ever. */
    struct fuse_file_info info = {
        .fh = handle, .keep_cache = caching != CK_CACHE_NONE, .direct_io = caching != CK_CACHE_KEEP, .noflush = 1};
    fuse_reply_open(unwrapped(request), &info);
}

void ck_reply_folder(struct ck_request *request, uint64_t handle, bool is_constant) {
    struct fuse_file_info info = {.fh = handle, .keep_cache = is_constant, .cache_readdir = is_constant};
    fuse_reply_open(unwrapped(request), &info);
}

void ck_reply_pieces(struct ck_request *request, const struct iovec *pieces, size_t count) {
    if (count)
        fuse_reply_iov(unwrapped(request), pieces, (int)count);
    else
        fuse_reply_buf(unwrapped(request), NULL, 0);
}

void ck_reply_offset(struct ck_request *request, uint64_t offset) { fuse_reply_lseek(unwrapped(request), (off_t)offset); }

void ck_reply_space(struct ck_request *request, const struct ck_space *space) {
    struct statvfs status = {
        .f_bsize = space->block_size,
        .f_frsize = space->block_size,
        .f_blocks = space->blocks,
        .f_bfree = space->free_blocks,
        .f_bavail = space->free_blocks,
        .f_files = space->files,
        .f_namemax = 255,
    };
    fuse_reply_statfs(unwrapped(request), &status);
}

size_t ck_listing_add(struct ck_request *request, void *to, size_t room, const char *name, const struct ck_node *node, uint64_t next,
                      bool with_attributes) {
    size_t needed;
    if (with_attributes) {
        struct fuse_entry_param entry = entry_of(request, node);
        needed = fuse_add_direntry_plus(unwrapped(request), to, room, name, &entry, (off_t)next);
    } else {
        struct stat status = status_of(request, node);
        needed = fuse_add_direntry(unwrapped(request), to, room, name, &status, (off_t)next);
    }
    return needed > room ? 0 : needed;
}
