/* What the files of this target share. */
#ifndef MOUNT_INTERNAL_H
#define MOUNT_INTERNAL_H

#include <sys/types.h>

#include "cstoremount.h"

struct ck_mount {
    struct ck_mount_handler handler;
    struct fuse_session *session;
    uid_t owner;
    gid_t group;
    bool others;
};

struct fuse_lowlevel_ops;

/* Sets the functions that change something: all of them refuse to, as a read-only file system does. */
void ck_refuse_changes(struct fuse_lowlevel_ops *operations);

#endif
