/* Child processes, handles on processes, and the local sockets that connect them.
 *
 * Invariants:
 * - Every call that can fail returns a negative errno value; calls interrupted by a signal go on, and
 *   what is left of their time limit with them.
 * - Descriptors made here close on exec.
 * - Sockets keep their mode: calls that must not block say so call by call, since the mode belongs to the
 *   open socket, which other processes may share.
 */
#ifndef CLINUX_PROCESS_H
#define CLINUX_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* A handle on a process, readable once it has ended. */
int ck_pidfd_open(pid_t process);

/* A duplicate of another process's descriptor. Needs the right to trace that process. */
int ck_pidfd_getfd(int pidfd, int descriptor);

/* Waits until the process has ended: 1, or 0 when it has not after `milliseconds` (negative: no limit). */
int ck_pidfd_wait(int pidfd, int milliseconds);

int ck_pidfd_signal(int pidfd, int signal);

/* How a child ended: an exit code, or a signal's number plus 256. */
enum { ck_ended_by_signal = 256 };

/* How the child behind `pidfd` ended; -EAGAIN while it runs, -ECHILD when it is no child of ours or was
 * reaped before. Reaps it when `reap`. */
int ck_pidfd_status(int pidfd, bool reap);

/* A descriptor that a child shall have under a number of its own. */
struct ck_inherited {
    int parent, child;
    int moved; /* for ck_spawn's own use */
};

enum {
    CK_NEW_SESSION = 1,
    /* The child is killed when the thread that called ck_spawn ends (Linux knows no better). */
    CK_DIES_WITH_PARENT = 2,
};

/* Starts the file `path` as a child and returns its process id.
 * It gets descriptors 0 to 2 as they are here, and those listed, which may be among 0 to 2; none else. Its
 * signals are all at their defaults, none blocked. A failure to start the file is returned, as
 * that of any step before. `pidfd` gets a handle on the child. */
pid_t ck_spawn(const char *path, char *const arguments[], struct ck_inherited *inherited, size_t count, unsigned flags,
               int *pidfd);

/* Connects to a local stream socket without waiting: -EAGAIN when its queue is full. */
int ck_connect_local(const char *path);

/* The process at the other end of a local socket: the one that called listen, connect or socketpair. 0 when it
 * can't be seen from here. */
pid_t ck_peer_process(int socket);

/* Sends without waiting, with a descriptor attached unless that is negative; returns how much was sent, which for
 * messages of up to 32 KiB is nothing (-EAGAIN) or all. */
ssize_t ck_send(int socket, const void *bytes, size_t count, int descriptor);

/* Receives without waiting: the count, 0 at the end. Descriptors that come with the bytes are dropped. */
ssize_t ck_receive(int socket, void *bytes, size_t count);

/* A descriptor that ck_signal_event makes readable, for ever. */
int ck_open_event(void);
int ck_signal_event(int event);

/* What may become ready for ck_wait. */
enum { CK_READABLE = 1, CK_WRITABLE = 2, CK_EVENT = 4 };

/* Waits until `descriptor` is ready in one of the ways `wanted`, ended or broken (then it counts as all of them), or
 * until `event` is readable: CK_EVENT. Negative descriptors are never ready. 0 when nothing happened in
 * `milliseconds` (negative: no limit). */
int ck_wait(int descriptor, int wanted, int event, int milliseconds);

/* The calling thread, by the number that priorities are set for. */
pid_t ck_thread_id(void);

/* Lets a thread run only when nobody else wants the processor, or as usual again. -EPERM: it may not be raised again. */
int ck_set_idle(pid_t thread, bool idle);

/* A datagram socket bound to `name` in the abstract namespace of local sockets: -EADDRINUSE while somebody holds one. */
int ck_bind_name(const char *name);

#endif
