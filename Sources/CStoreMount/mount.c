#define _GNU_SOURCE
#define FUSE_USE_VERSION 312
#include "cstoremount.h"

#include <errno.h>
#include <fcntl.h>
#include <fuse_lowlevel.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "mount_internal.h"

/* libfuse has one function for its messages; the last one says why a mount failed. */
static pthread_mutex_t message_lock = PTHREAD_MUTEX_INITIALIZER;
static char last_message[512];

static void keep_message(enum fuse_log_level level, const char *format, va_list arguments) {
    if (level > FUSE_LOG_ERR) return;
    pthread_mutex_lock(&message_lock);
    vsnprintf(last_message, sizeof last_message, format, arguments);
    size_t length = strlen(last_message);
    if (length && last_message[length - 1] == '\n') last_message[length - 1] = 0;
    pthread_mutex_unlock(&message_lock);
}

static struct ck_mount_handler *handler_of(fuse_req_t request) {
    return &((struct ck_mount *)fuse_req_userdata(request))->handler;
}

static struct ck_request *wrapped(fuse_req_t request) { return (struct ck_request *)request; }

static void on_init(void *context, struct fuse_conn_info *connection) {
    (void)context;
    /* Requests are small, and what is read lies in memory: splicing costs more than it saves. */
    connection->want &= ~(unsigned)(FUSE_CAP_SPLICE_READ | FUSE_CAP_SPLICE_WRITE | FUSE_CAP_SPLICE_MOVE);
    /* Attributes always come with names: they cost nothing here, and asking for them one by one a great deal. */
    connection->want &= ~(unsigned)FUSE_CAP_READDIRPLUS_AUTO;
    /* A program that writes must be told at once, and one that maps memory must not share what it writes: the kernel keeps nothing
     * that was written, and asks before it cuts a file. */
    connection->want &= ~(unsigned)FUSE_CAP_WRITEBACK_CACHE;
#ifdef FUSE_CAP_DIRECT_IO_ALLOW_MMAP
    connection->want &= ~(unsigned)FUSE_CAP_DIRECT_IO_ALLOW_MMAP;
#endif
    connection->want |= connection->capable & FUSE_CAP_ATOMIC_O_TRUNC;
    connection->want |= connection->capable &
                        (FUSE_CAP_ASYNC_READ | FUSE_CAP_ASYNC_DIO | FUSE_CAP_PARALLEL_DIROPS | FUSE_CAP_READDIRPLUS);
    connection->max_background = 64;
    connection->congestion_threshold = 48;
}

static void on_lookup(fuse_req_t request, fuse_ino_t parent, const char *name) {
    struct ck_mount_handler *handler = handler_of(request);
    handler->look_up(handler->context, wrapped(request), parent, name);
}

static void on_getattr(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)info;
    struct ck_mount_handler *handler = handler_of(request);
    handler->attributes(handler->context, wrapped(request), inode);
}

static void on_readlink(fuse_req_t request, fuse_ino_t inode) {
    struct ck_mount_handler *handler = handler_of(request);
    handler->read_link(handler->context, wrapped(request), inode);
}

/* A file that is opened just for writing, or to be cut or appended to, is going to be changed: said now, not when it is too late to do
 * something else. */
static void on_open(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    struct ck_mount_handler *handler = handler_of(request);
    int access = info->flags & O_ACCMODE;
    bool is_for_change = (access != O_RDONLY && access != O_RDWR) || info->flags & O_TRUNC || (access == O_RDWR && info->flags & O_APPEND);
    if (is_for_change)
        fuse_reply_err(request, EROFS);
    else
        handler->open_file(handler->context, wrapped(request), inode, access == O_RDWR);
}

static void on_release(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    struct ck_mount_handler *handler = handler_of(request);
    handler->close_file(handler->context, info->fh);
    fuse_reply_err(request, 0);
}

static void on_read(fuse_req_t request, fuse_ino_t inode, size_t size, off_t offset, struct fuse_file_info *info) {
    (void)inode;
    struct ck_mount_handler *handler = handler_of(request);
    handler->read_file(handler->context, wrapped(request), info->fh, (uint64_t)offset, size);
}

static void on_lseek(fuse_req_t request, fuse_ino_t inode, off_t offset, int whence, struct fuse_file_info *info) {
    (void)inode;
    struct ck_mount_handler *handler = handler_of(request);
    if ((whence != SEEK_DATA && whence != SEEK_HOLE) || offset < 0)
        fuse_reply_err(request, EINVAL);
    else
        handler->seek(handler->context, wrapped(request), info->fh, (uint64_t)offset, whence == SEEK_HOLE);
}

static void on_opendir(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)info;
    struct ck_mount_handler *handler = handler_of(request);
    handler->open_folder(handler->context, wrapped(request), inode);
}

static void on_releasedir(fuse_req_t request, fuse_ino_t inode, struct fuse_file_info *info) {
    (void)inode;
    struct ck_mount_handler *handler = handler_of(request);
    handler->close_folder(handler->context, info->fh);
    fuse_reply_err(request, 0);
}

static void list(fuse_req_t request, size_t size, off_t first, struct fuse_file_info *info, bool with_attributes) {
    struct ck_mount_handler *handler = handler_of(request);
    handler->list(handler->context, wrapped(request), info->fh, (uint64_t)first, size, with_attributes);
}

static void on_readdir(fuse_req_t request, fuse_ino_t inode, size_t size, off_t first, struct fuse_file_info *info) {
    (void)inode;
    list(request, size, first, info, false);
}

static void on_readdirplus(fuse_req_t request, fuse_ino_t inode, size_t size, off_t first, struct fuse_file_info *info) {
    (void)inode;
    list(request, size, first, info, true);
}

static void on_statfs(fuse_req_t request, fuse_ino_t inode) {
    (void)inode;
    struct ck_mount_handler *handler = handler_of(request);
    handler->space(handler->context, wrapped(request));
}

/* The kernel refuses changes itself on a file system that is mounted read-only; for others see ck_refuse_changes. */
static const struct fuse_lowlevel_ops reading_operations = {
    .init = on_init,
    .lookup = on_lookup,
    .getattr = on_getattr,
    .readlink = on_readlink,
    .open = on_open,
    .release = on_release,
    .read = on_read,
    .lseek = on_lseek,
    .opendir = on_opendir,
    .releasedir = on_releasedir,
    .readdir = on_readdir,
    .readdirplus = on_readdirplus,
    .statfs = on_statfs,
};

/* The options of the mount. Where files can be opened for writing, their modes would keep those who may read from that: who may look in
 * at all, which the kernel checks, may do all that can be done. A comma or backslash in the source's name is escaped. */
static char *option_text(const struct ck_mount_options *options) {
    static const char fixed[] = "nosuid,nodev,noexec,subtype=ckstore,";
    size_t length = strlen(options->source);
    char *text = malloc(sizeof fixed + 2 * length + 64);
    if (!text) return NULL;
    char *end = text + sprintf(text, "%s%s%sfsname=", options->private_writes ? "" : "ro,default_permissions,", fixed,
                               options->allows_others ? "allow_other," : "");
    for (size_t i = 0; i < length; i++) {
        if (options->source[i] == ',' || options->source[i] == '\\') *end++ = '\\';
        *end++ = options->source[i];
    }
    *end = 0;
    return text;
}

static int open_session(struct ck_mount *mount, const struct ck_mount_options *options) {
    char *text = option_text(options);
    if (!text) return -ENOMEM;
    struct fuse_args arguments = FUSE_ARGS_INIT(0, NULL);
    int status = fuse_opt_add_arg(&arguments, "ckstore") || fuse_opt_add_arg(&arguments, "-o") ||
                         fuse_opt_add_arg(&arguments, text)
                     ? -ENOMEM
                     : 0;
    if (!status) {
        struct fuse_lowlevel_ops operations = reading_operations;
        if (options->private_writes) ck_refuse_changes(&operations);
        mount->session = fuse_session_new(&arguments, &operations, sizeof operations, mount);
        if (!mount->session) status = -EINVAL;
    }
    fuse_opt_free_args(&arguments);
    free(text);
    return status;
}

int ck_mount_start(const struct ck_mount_options *options, const struct ck_mount_handler *handler, struct ck_mount **result,
                   struct ck_mount_identity *identity, char *message, size_t message_room) {
    struct ck_mount *mount = calloc(1, sizeof *mount);
    if (!mount) return -ENOMEM;
    mount->handler = *handler;
    mount->owner = geteuid();
    mount->group = getegid();
    mount->others = options->allows_others;
    last_message[0] = 0;
    fuse_set_log_func(keep_message);
    int status = open_session(mount, options);
    if (!status) {
        errno = 0;
        if (fuse_session_mount(mount->session, options->path)) status = errno ? -errno : -EIO;
    }
    if (!status) {
        status = ck_identify_mount(options->path, identity);
        if (status) fuse_session_unmount(mount->session);
    }
    if (!status) {
        *result = mount;
        return 0;
    }
    pthread_mutex_lock(&message_lock);
    snprintf(message, message_room, "%s", last_message);
    pthread_mutex_unlock(&message_lock);
    if (mount->session) fuse_session_destroy(mount->session);
    free(mount);
    return status;
}

int ck_mount_serve(struct ck_mount *mount) {
    struct fuse_buf buffer = {.mem = NULL};
    int status = 0;
    while (!fuse_session_exited(mount->session)) {
        int received = fuse_session_receive_buf(mount->session, &buffer);
        if (received == -EINTR) continue;
        if (received <= 0) {
            status = received;
            break;
        }
        fuse_session_process_buf(mount->session, &buffer);
    }
    free(buffer.mem);
    return status;
}

void ck_mount_end(struct ck_mount *mount) {
    fuse_session_destroy(mount->session);
    free(mount);
}
