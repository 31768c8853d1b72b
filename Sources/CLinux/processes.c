#define _GNU_SOURCE
#include "clinux_process.h"

#include <sched.h>
#include <stddef.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Not in every header: waitid's P_PIDFD. */
#define CK_P_PIDFD ((idtype_t)3)

#define RETRY(call)                                 \
    ({                                              \
        __typeof__(call) result_;                   \
        do result_ = (call);                        \
        while (result_ < 0 && errno == EINTR);      \
        result_ < 0 ? -(__typeof__(call))errno : result_; \
    })

static int64_t now_milliseconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int poll_until(struct pollfd *polled, nfds_t count, int milliseconds) {
    int64_t end = now_milliseconds() + milliseconds;
    while (true) {
        int ready = poll(polled, count, milliseconds);
        if (ready >= 0) return ready;
        if (errno != EINTR) return -errno;
        if (milliseconds >= 0) {
            int64_t left = end - now_milliseconds();
            milliseconds = left > 0 ? (int)left : 0;
        }
    }
}

int ck_pidfd_open(pid_t process) { return (int)RETRY(syscall(SYS_pidfd_open, process, 0)); }

int ck_pidfd_getfd(int pidfd, int descriptor) { return (int)RETRY(syscall(SYS_pidfd_getfd, pidfd, descriptor, 0)); }

int ck_pidfd_wait(int pidfd, int milliseconds) {
    struct pollfd polled = {.fd = pidfd, .events = POLLIN};
    return poll_until(&polled, 1, milliseconds);
}

int ck_pidfd_signal(int pidfd, int signal) {
    return (int)RETRY(syscall(SYS_pidfd_send_signal, pidfd, signal, NULL, 0));
}

int ck_pidfd_status(int pidfd, bool reap) {
    siginfo_t info = {.si_pid = 0};
    int status = RETRY(waitid(CK_P_PIDFD, (id_t)pidfd, &info, WEXITED | WNOHANG | (reap ? 0 : WNOWAIT)));
    if (status < 0) return status;
    if (!info.si_pid) return -EAGAIN;
    return info.si_code == CLD_EXITED ? info.si_status : ck_ended_by_signal + info.si_status;
}

struct start {
    const char *path;
    char *const *arguments;
    struct ck_inherited *inherited;
    size_t count;
    unsigned flags;
    pid_t parent;
};

/* In the child, whose table of descriptors is its own but whose memory is the parent's. All move out of the way
 * first: one's wanted number may be another's present one. */
static int arrange_descriptors(const struct start *start) {
    int above = 2;
    for (size_t i = 0; i < start->count; i++)
        if (start->inherited[i].child > above) above = start->inherited[i].child;
    for (size_t i = 0; i < start->count; i++) {
        struct ck_inherited *one = &start->inherited[i];
        one->moved = fcntl(one->parent, F_DUPFD_CLOEXEC, above + 1);
        if (one->moved < 0) return -errno;
    }
    /* Closed here and not by the exec, which lets the parent go on before it closes. */
    if (above > 2 && syscall(SYS_close_range, 3u, (unsigned)above, 0u) < 0) return -errno;
    for (size_t i = 0; i < start->count; i++) {
        int status = RETRY(dup2(start->inherited[i].moved, start->inherited[i].child));
        if (status < 0) return status;
    }
    return syscall(SYS_close_range, (unsigned)above + 1, ~0u, 0u) < 0 ? -errno : 0;
}

/* In the child, between fork and exec: system calls only. Returns only when it failed. */
static int become(const struct start *start) {
    if (start->flags & CK_DIES_WITH_PARENT) {
        if (prctl(PR_SET_PDEATHSIG, SIGKILL)) return -errno;
        /* Had the parent ended before that, no signal would come any more. */
        if (getppid() != start->parent) _exit(127);
    }
    if (start->flags & CK_NEW_SESSION && setsid() < 0) return -errno;
    int status = arrange_descriptors(start);
    if (status) return status;
    /* Handlers become the default by themselves, but only at the exec: till then one could run in the parent's
     * memory once signals are let through. The C library keeps two numbers to itself; those fail, rightly. */
    struct sigaction standard = {.sa_handler = SIG_DFL};
    for (int signal = 1; signal < NSIG; signal++) sigaction(signal, &standard, NULL);
    sigset_t none;
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
    execve(start->path, start->arguments, environ);
    return -errno;
}

/* vfork: a fork would copy the page tables of a large process, and write-protect its memory. The child
 * shares this frame until it has become the other programme, so that it can leave its error here. */
static __attribute__((noinline)) pid_t start_child(const struct start *start, volatile int *failure) {
    pid_t child = vfork();
    if (child == 0) {
        *failure = become(start);
        _exit(127);
    }
    return child < 0 ? -errno : child;
}

pid_t ck_spawn(const char *path, char *const arguments[], struct ck_inherited *inherited, size_t count, unsigned flags,
               int *pidfd) {
    const struct start start = {path, arguments, inherited, count, flags, getpid()};
    volatile int failure = 0;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pid_t child = start_child(&start, &failure);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (child < 0) return child;
    int status = failure;
    if (!status) {
        *pidfd = ck_pidfd_open(child);
        if (*pidfd >= 0) return child;
        status = *pidfd;
        kill(child, SIGKILL);
    }
    RETRY(waitpid(child, NULL, 0));
    return status;
}

int ck_connect_local(const char *path) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(path);
    if (length >= sizeof address.sun_path) return -ENAMETOOLONG;
    memcpy(address.sun_path, path, length);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return -errno;
    int status = RETRY(connect(fd, (struct sockaddr *)&address, sizeof address));
    if (!status) status = RETRY(fcntl(fd, F_SETFL, 0));
    if (!status) return fd;
    close(fd);
    return status;
}

pid_t ck_peer_process(int socket) {
    struct ucred credentials;
    socklen_t size = sizeof credentials;
    if (getsockopt(socket, SOL_SOCKET, SO_PEERCRED, &credentials, &size)) return -errno;
    return credentials.pid;
}

ssize_t ck_send(int socket, const void *bytes, size_t count, int descriptor) {
    struct iovec vector = {.iov_base = (void *)bytes, .iov_len = count};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {0};
    if (descriptor >= 0) {
        message.msg_control = &control;
        message.msg_controllen = sizeof control;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof(int));
        memcpy(CMSG_DATA(header), &descriptor, sizeof(int));
    }
    return RETRY(sendmsg(socket, &message, MSG_DONTWAIT | MSG_NOSIGNAL));
}

ssize_t ck_receive(int socket, void *bytes, size_t count) { return RETRY(recv(socket, bytes, count, MSG_DONTWAIT)); }

int ck_open_event(void) { return RETRY(eventfd(0, EFD_CLOEXEC)); }

int ck_signal_event(int event) {
    const uint64_t one = 1;
    return (int)RETRY(write(event, &one, sizeof one)) < 0 ? -errno : 0;
}

int ck_wait(int descriptor, int wanted, int event, int milliseconds) {
    struct pollfd polled[2] = {
        {.fd = descriptor,
         .events = (short)((wanted & CK_READABLE ? POLLIN : 0) | (wanted & CK_WRITABLE ? POLLOUT : 0))},
        {.fd = event, .events = POLLIN},
    };
    int status = poll_until(polled, 2, milliseconds);
    if (status < 0) return status;
    int ready = polled[1].revents ? CK_EVENT : 0;
    if (polled[0].revents & (POLLERR | POLLHUP | POLLNVAL)) return ready | wanted;
    if (polled[0].revents & POLLIN) ready |= CK_READABLE;
    if (polled[0].revents & POLLOUT) ready |= CK_WRITABLE;
    return ready;
}

pid_t ck_thread_id(void) { return gettid(); }

int ck_set_idle(pid_t thread, bool idle) {
    struct sched_param parameters = {0};
    return sched_setscheduler(thread, idle ? SCHED_IDLE : SCHED_OTHER, &parameters) < 0 ? -errno : 0;
}

int ck_bind_name(const char *name) {
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    size_t length = strlen(name);
    int descriptor;
    if (length > sizeof address.sun_path - 1) return -ENAMETOOLONG;
    memcpy(address.sun_path + 1, name, length);
    descriptor = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (descriptor < 0) return -errno;
    if (bind(descriptor, (struct sockaddr *)&address, offsetof(struct sockaddr_un, sun_path) + 1 + length) < 0) {
        int error = -errno;
        close(descriptor);
        return error;
    }
    return descriptor;
}
