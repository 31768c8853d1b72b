/* How a thread of another process is led through system calls.
 *
 * The thread is stopped with PTRACE_INTERRUPT, which is no signal: nothing of it is visible to the program.
 * A thread that waits in a system call was stopped in the kernel's signal path, with a return value of
 * -ERESTART...; the kernel restarts the call when the thread leaves that path with those registers. So the
 * registers go back and the thread is stopped once more, and it is let go from that second stop.
 *
 * Should this process die on the way, the kernel lets the thread go. It has its own registers except for
 * the time of the two system calls (microseconds); for that the thread is led through the very `syscall`
 * instruction that it waits in, so that the worst is a poll() that returns early with a wrong count. Nothing
 * of the target's memory is ever written.
 *
 * Some waits are not restarted: the kernel ends them with -EINTR for a mere stop as well. Their result becomes
 * -ERESTARTNOHAND, with which the kernel waits again unless a handler has run.
 */
#define _GNU_SOURCE
#include "clivememory_inject.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const unsigned char instruction_bytes[2] = {0x0f, 0x05};

int64_t ck_find_system_call_instruction(const void *bytes, size_t count) {
    const unsigned char *found = memmem(bytes, count, instruction_bytes, sizeof instruction_bytes);
    return found ? found - (const unsigned char *)bytes : -1;
}

#if defined(__x86_64__)

enum { STOP_LIMIT_MS = 500, CALL_LIMIT_MS = 5000, MOST_ATTEMPTS = 64 };
enum { FLAT_64_BIT_CODE = 0x33, RESTART_WITHOUT_HANDLER = 514 /* the kernel's ERESTARTNOHAND */ };

enum stop { STOP_TRAP, STOP_CALL, STOP_SIGNAL };

struct session {
    pid_t thread;
    struct user_regs_struct own; /* the thread's registers, as it goes on with them */
    uint64_t instruction;        /* the one to run */
    int signal;                  /* of the last STOP_SIGNAL */
};

static int64_t now_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static int request(int what, struct session *s, void *address, void *data) {
    return ptrace(what, s->thread, address, data) < 0 ? -errno : 0;
}

/* Waits for the thread's next stop. Polls, since there is no wait for one thread that ends in time; asleep in between and not yielding,
 * which on a busy machine would cost whole time slices while the thread is held. */
static int wait_stop(struct session *s, int limit_ms) {
    int64_t end = now_ms() + limit_ms;
    for (;;) {
        int status;
        pid_t got = waitpid(s->thread, &status, __WALL | WNOHANG);
        if (got < 0 && errno != EINTR) return -errno;
        if (got == s->thread) {
            if (!WIFSTOPPED(status)) return -ESRCH;
            if (status >> 16 == PTRACE_EVENT_STOP) return STOP_TRAP;
            s->signal = WSTOPSIG(status);
            return s->signal == (SIGTRAP | 0x80) ? STOP_CALL : STOP_SIGNAL;
        }
        if (now_ms() >= end) return -ETIMEDOUT;
        nanosleep(&(struct timespec){.tv_nsec = 5000}, NULL);
    }
}

/* Lets the thread run until it stops at our request; its signals are delivered on the way. */
static int run_to_trap(struct session *s, int limit_ms) {
    for (;;) {
        int stop = wait_stop(s, limit_ms);
        if (stop < 0 || stop == STOP_TRAP) return stop;
        int error = request(PTRACE_CONT, s, NULL, (void *)(intptr_t)(stop == STOP_SIGNAL ? s->signal : 0));
        if (error) return error;
    }
}

static int stop_thread(struct session *s) {
    int error = request(PTRACE_INTERRUPT, s, NULL, NULL);
    return error ? error : run_to_trap(s, STOP_LIMIT_MS);
}

static int transfer_registers(int what, struct session *s, struct user_regs_struct *registers) {
    struct iovec all = {registers, sizeof *registers};
    return request(what, s, (void *)(intptr_t)1 /* NT_PRSTATUS */, &all);
}

/* Waits that a stop ends with -EINTR. */
static bool is_ended_by_stops(uint64_t number) {
    switch (number) {
    case SYS_epoll_wait:
    case SYS_epoll_pwait:
    case SYS_epoll_pwait2:
    case SYS_io_getevents:
    case SYS_io_uring_enter:
    case SYS_rt_sigtimedwait:
    case SYS_semop:
    case SYS_semtimedop: return true;
    default: return false;
    }
}

/* Looks at the stopped thread: its registers and the instruction to use. */
static int examine(struct session *s, const struct ck_injection *injection) {
    int error = transfer_registers(PTRACE_GETREGSET, s, &s->own);
    if (error) return error;
    if ((s->own.cs & 0xff) != FLAT_64_BIT_CODE) return -ENOEXEC;
    bool in_call = (int64_t)s->own.orig_rax >= 0;
    if (!in_call && !injection->allow_running) return -EAGAIN;
    if (in_call && (int64_t)s->own.rax == -EINTR && is_ended_by_stops(s->own.orig_rax))
        s->own.rax = (uint64_t)-RESTART_WITHOUT_HANDLER;
    s->instruction = injection->instruction;
    if (in_call) {
        uint64_t place = s->own.rip - sizeof instruction_bytes;
        errno = 0;
        long word = ptrace(PTRACE_PEEKTEXT, s->thread, (void *)place, NULL);
        if (errno == 0 && memcmp(&word, instruction_bytes, sizeof instruction_bytes) == 0) s->instruction = place;
    }
    return s->instruction ? 0 : -ENOEXEC;
}

/* Leads the stopped thread through one system call; it is stopped at that call's end then. -EINTR: a signal
 * came first; the thread runs with its own registers and handles it. */
static int run_call(struct session *s, long number, uint64_t argument, int64_t *result) {
    struct user_regs_struct registers = s->own;
    registers.orig_rax = (uint64_t)-1; /* nothing to restart */
    registers.rax = (uint64_t)number;
    registers.rdi = argument;
    registers.rip = s->instruction;
    int error = transfer_registers(PTRACE_SETREGSET, s, &registers);
    for (int calls = 0; !error;) {
        error = request(PTRACE_SYSCALL, s, NULL, NULL);
        if (error) break;
        int stop = wait_stop(s, CALL_LIMIT_MS);
        if (stop < 0) return stop;
        if (stop == STOP_SIGNAL) {
            error = transfer_registers(PTRACE_SETREGSET, s, &s->own);
            if (!error) error = request(PTRACE_CONT, s, NULL, (void *)(intptr_t)s->signal);
            return error ? error : -EINTR;
        }
        if (stop == STOP_CALL && ++calls == 2) {
            error = transfer_registers(PTRACE_GETREGSET, s, &registers);
            *result = (int64_t)registers.rax;
            break;
        }
    }
    return error;
}

/* Gives the thread its registers back, in the signal path, and lets it go. */
static int release(struct session *s) {
    int error = request(PTRACE_INTERRUPT, s, NULL, NULL);
    if (!error) error = transfer_registers(PTRACE_SETREGSET, s, &s->own);
    if (!error) error = request(PTRACE_CONT, s, NULL, NULL);
    if (!error) error = run_to_trap(s, CALL_LIMIT_MS);
    int detached = request(PTRACE_DETACH, s, NULL, NULL);
    return error < 0 ? error : detached;
}

/* The two calls, repeated as signals demand. On return the thread runs, traced, or has been let go. */
static int take(struct session *s, const struct ck_injection *injection, enum ck_injection_step *step) {
    int64_t theirs = -1;
    int ours = -1, error = -EINTR;
    for (int attempt = 0; attempt < MOST_ATTEMPTS; attempt++) {
        *step = CK_INJECTION_STOP;
        if ((error = stop_thread(s))) break;
        *step = CK_INJECTION_STATE;
        if ((error = examine(s, injection))) {
            request(PTRACE_DETACH, s, NULL, NULL);
            break;
        }
        if (theirs < 0) {
            *step = CK_INJECTION_CREATE;
            if ((error = run_call(s, SYS_userfaultfd, injection->flags, &theirs)) == -EINTR) continue;
            if (!error && theirs < 0) error = (int)theirs;
            if (!error) {
                ours = (int)syscall(SYS_pidfd_getfd, injection->process, (int)theirs, 0);
                if (ours < 0) {
                    error = -errno;
                    *step = CK_INJECTION_TAKE;
                }
            }
        }
        if (theirs >= 0) {
            int64_t closed = -EIO;
            int status = run_call(s, SYS_close, (uint64_t)theirs, &closed);
            if (status == -EINTR) continue;
            if (!error) {
                *step = CK_INJECTION_CLOSE;
                error = status ? status : (int)closed;
            }
        }
        int released = release(s);
        if (!error && released) {
            *step = CK_INJECTION_RELEASE;
            error = released;
        }
        break;
    }
    if (!error && ours >= 0) return ours;
    if (ours >= 0) close(ours);
    return error ? error : -EIO;
}

int ck_take_userfaultfd(const struct ck_injection *injection, enum ck_injection_step *step) {
    struct session session = {.thread = injection->thread};
    prctl(PR_SET_TIMERSLACK, 1UL); /* this thread's sleeps are as short as it asks for */
    /* Never PTRACE_O_EXITKILL: our end must not be the target's. */
    intptr_t options = PTRACE_O_TRACESYSGOOD | (injection->suspend_seccomp ? PTRACE_O_SUSPEND_SECCOMP : 0);
    *step = CK_INJECTION_ATTACH;
    int error = request(PTRACE_SEIZE, &session, NULL, (void *)options);
    return error ? error : take(&session, injection, step);
}

#else

int ck_take_userfaultfd(const struct ck_injection *injection, enum ck_injection_step *step) {
    (void)injection;
    *step = CK_INJECTION_ATTACH;
    return -ENOSYS;
}

#endif
