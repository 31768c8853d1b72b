/* A userfaultfd of another process, made by two system calls that one of its threads is led through. */
#ifndef CLIVEMEMORY_INJECT_H
#define CLIVEMEMORY_INJECT_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* How far it came. */
enum ck_injection_step {
    CK_INJECTION_ATTACH,   /* tracing the thread */
    CK_INJECTION_STOP,     /* stopping it */
    CK_INJECTION_STATE,    /* its registers: -EAGAIN when it is in no system call, -ENOEXEC when it is no 64-bit code */
    CK_INJECTION_CREATE,   /* its userfaultfd() call */
    CK_INJECTION_TAKE,     /* pidfd_getfd */
    CK_INJECTION_CLOSE,    /* its close() call */
    CK_INJECTION_RELEASE,  /* putting the registers back, letting it go */
};

struct ck_injection {
    pid_t thread;            /* which thread to lead through the calls */
    int process;             /* its process's pidfd */
    uint64_t instruction;    /* where its process has a `syscall` instruction; 0: unknown */
    unsigned flags;          /* of userfaultfd() */
    bool allow_running;      /* also when the thread is in no system call */
    bool suspend_seccomp;    /* filters of the thread don't apply meanwhile */
};

/* Has the thread make a userfaultfd, duplicates it into this process and has the thread close its own. The
 * thread goes on where it was; a system call that it was waiting in goes on waiting. Returns our descriptor
 * (close-on-exec) or a negative errno value, `step` then says of what. Must run on a thread that ends
 * soon afterwards: a thread of the target that could not be stopped in time is let go by that end.
 * -ENOSYS on processors other than x86-64. */
int ck_take_userfaultfd(const struct ck_injection *injection, enum ck_injection_step *step);

/* Where in [bytes, bytes + count) a `syscall` instruction is; -1: nowhere. */
int64_t ck_find_system_call_instruction(const void *bytes, size_t count);

#endif
