/* What would change a file system that is not mounted as read-only: refused in the words of one that is.
 *
 * Invariant: every request of the kernel that changes something is here. One that is missing would be answered "not implemented", which
 * the kernel takes for success in some cases, and for a reason to try in other ways in others. */
#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include <errno.h>
#include <fuse_lowlevel.h>
#include <unistd.h>

#include "mount_internal.h"

static void refuse_create(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode, struct fuse_file_info *info) {
    (void)folder, (void)name, (void)mode, (void)info;
    fuse_reply_err(request, EROFS);
}

static void refuse_mknod(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode, dev_t device) {
    (void)folder, (void)name, (void)mode, (void)device;
    fuse_reply_err(request, EROFS);
}

static void refuse_mkdir(fuse_req_t request, fuse_ino_t folder, const char *name, mode_t mode) {
    (void)folder, (void)name, (void)mode;
    fuse_reply_err(request, EROFS);
}

static void refuse_symlink(fuse_req_t request, const char *target, fuse_ino_t folder, const char *name) {
    (void)target, (void)folder, (void)name;
    fuse_reply_err(request, EROFS);
}

static void refuse_link(fuse_req_t request, fuse_ino_t inode, fuse_ino_t folder, const char *name) {
    (void)inode, (void)folder, (void)name;
    fuse_reply_err(request, EROFS);
}

/* unlink and rmdir. */
static void refuse_removal(fuse_req_t request, fuse_ino_t folder, const char *name) {
    (void)folder, (void)name;
    fuse_reply_err(request, EROFS);
}

static void refuse_rename(fuse_req_t request, fuse_ino_t from, const char *name, fuse_ino_t to, const char *new_name, unsigned flags) {
    (void)from, (void)name, (void)to, (void)new_name, (void)flags;
    fuse_reply_err(request, EROFS);
}

/* chmod, chown, truncate and the setting of times. */
static void refuse_setattr(fuse_req_t request, fuse_ino_t inode, struct stat *status, int what, struct fuse_file_info *info) {
    (void)inode, (void)status, (void)what, (void)info;
    fuse_reply_err(request, EROFS);
}

static void refuse_write(fuse_req_t request, fuse_ino_t inode, const char *bytes, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)inode, (void)bytes, (void)size, (void)offset, (void)info;
    fuse_reply_err(request, EROFS);
}

static void refuse_fallocate(fuse_req_t request, fuse_ino_t inode, int mode, off_t offset, off_t length, struct fuse_file_info *info) {
    (void)inode, (void)mode, (void)offset, (void)length, (void)info;
    fuse_reply_err(request, EROFS);
}

static void refuse_copy(fuse_req_t request, fuse_ino_t from, off_t offset, struct fuse_file_info *info, fuse_ino_t to, off_t to_offset,
                        struct fuse_file_info *to_info, size_t length, int flags) {
    (void)from, (void)offset, (void)info, (void)to, (void)to_offset, (void)to_info, (void)length, (void)flags;
    fuse_reply_err(request, EROFS);
}

static void refuse_setxattr(fuse_req_t request, fuse_ino_t inode, const char *name, const char *value, size_t size, int flags) {
    (void)inode, (void)name, (void)value, (void)size, (void)flags;
    fuse_reply_err(request, EROFS);
}

static void refuse_removexattr(fuse_req_t request, fuse_ino_t inode, const char *name) {
    (void)inode, (void)name;
    fuse_reply_err(request, EROFS);
}

/* Asked for by access(2): nothing here can be written to, whatever a file may be opened for. */
static void on_access(fuse_req_t request, fuse_ino_t inode, int wanted) {
    (void)inode;
    fuse_reply_err(request, wanted & W_OK ? EROFS : 0);
}

void ck_refuse_changes(struct fuse_lowlevel_ops *operations) {
    operations->access = on_access;
    operations->copy_file_range = refuse_copy;
    operations->create = refuse_create;
    operations->fallocate = refuse_fallocate;
    operations->link = refuse_link;
    operations->mkdir = refuse_mkdir;
    operations->mknod = refuse_mknod;
    operations->removexattr = refuse_removexattr;
    operations->rename = refuse_rename;
    operations->rmdir = refuse_removal;
    operations->setattr = refuse_setattr;
    operations->setxattr = refuse_setxattr;
    operations->symlink = refuse_symlink;
    operations->unlink = refuse_removal;
    operations->write = refuse_write;
}
