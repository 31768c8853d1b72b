/* Mount points from outside. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <syslog.h>
#include <unistd.h>

#include "cstoremount.h"

/* The set-uid program that lets users take off what they have mounted themselves. */
static int unmount_as_user(const char *path, bool detach) {
    char *arguments[] = {"fusermount3", "-u", "-q", detach ? "-z" : "--", detach ? "--" : (char *)path, detach ? (char *)path : NULL, NULL};
    pid_t child;
    int status = posix_spawnp(&child, arguments[0], NULL, NULL, arguments, environ);
    if (status) return -status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR) return -errno;
    return WIFEXITED(status) && WEXITSTATUS(status) == 0 ? 0 : -EBUSY;
}

#ifndef STATX_MNT_ID_UNIQUE
#define STATX_MNT_ID_UNIQUE 0x00004000U
#endif

int ck_identify_mount(const char *path, struct ck_mount_identity *identity) {
    struct statx status;
    memset(&status, 0, sizeof status);
    /* An older kernel ignores the number that is never used again, and one that is older still has neither: the device remains. */
    int flags = AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT | AT_STATX_DONT_SYNC;
    if (statx(AT_FDCWD, path, flags, STATX_MNT_ID | STATX_MNT_ID_UNIQUE, &status)) return -errno;
    identity->mount = status.stx_mask & (STATX_MNT_ID | STATX_MNT_ID_UNIQUE) ? status.stx_mnt_id : 0;
    identity->device_major = status.stx_dev_major;
    identity->device_minor = status.stx_dev_minor;
    return 0;
}

int ck_unmount(const char *path, const struct ck_mount_identity *identity, bool detach) {
    struct ck_mount_identity there;
    int status = ck_identify_mount(path, &there);
    if (status) return status;
    /* Somebody has taken ours off, and what is there now is not ours to take off. */
    if (there.mount != identity->mount || there.device_major != identity->device_major || there.device_minor != identity->device_minor)
        return -EINVAL;
    if (umount2(path, UMOUNT_NOFOLLOW | (detach ? MNT_DETACH : 0)) == 0) return 0;
    return errno == EPERM ? unmount_as_user(path, detach) : -errno;
}

int ck_is_mount_point(const char *path) {
    struct statx status;
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &status)) return -errno;
    return status.stx_attributes & STATX_ATTR_MOUNT_ROOT ? 1 : 0;
}

int ck_set_read_ahead(const char *path, unsigned kibibytes) {
    struct statx status;
    char setting[64];
    if (statx(AT_FDCWD, path, AT_SYMLINK_NOFOLLOW | AT_NO_AUTOMOUNT, STATX_TYPE, &status)) return -errno;
    snprintf(setting, sizeof setting, "/sys/class/bdi/%u:%u/read_ahead_kb", status.stx_dev_major, status.stx_dev_minor);
    int fd = open(setting, O_WRONLY | O_CLOEXEC);
    if (fd < 0) return -errno;
    int result = dprintf(fd, "%u\n", kibibytes) < 0 ? -errno : 0;
    close(fd);
    return result;
}

void ck_log_to_system(const char *line) { syslog(LOG_DAEMON | LOG_WARNING, "%s", line); }
