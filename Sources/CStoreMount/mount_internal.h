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

#endif
