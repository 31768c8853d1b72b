#define _GNU_SOURCE
#include "ckvm_processor.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "control.h"

#if defined(__x86_64__)

/* Sent to single threads only, which keep it blocked: whatever else the program uses it for is not disturbed. */
static int kick_signal(void) { return SIGURG; }

/* All signals but those that report a fault of the thread itself. */
static void all_but_faults(sigset_t *set) {
    static const int faults[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGSYS, SIGABRT};
    sigfillset(set);
    for (size_t i = 0; i < sizeof faults / sizeof *faults; i++) sigdelset(set, faults[i]);
}

int ck_processor_adopt_thread(int processor) {
    sigset_t outside;
    all_but_faults(&outside);
    int error = pthread_sigmask(SIG_BLOCK, &outside, NULL);
    if (error) return -error;
    /* The mask that holds in the guest, in the kernel's size of 8 bytes. */
    sigset_t inside = outside;
    sigdelset(&inside, kick_signal());
    union {
        struct kvm_signal_mask header;
        uint8_t bytes[sizeof(struct kvm_signal_mask) + 8];
    } mask = {.header.len = 8};
    memcpy(mask.bytes + offsetof(struct kvm_signal_mask, sigset), &inside, 8);
    return ck_control(processor, KVM_SET_SIGNAL_MASK, (uintptr_t)&mask);
}

/* Kicks that have done their work, and those that came when the guest had been left already. */
static void forget_kicks(void) {
    sigset_t kick;
    sigemptyset(&kick);
    sigaddset(&kick, kick_signal());
    const struct timespec at_once = {0, 0};
    while (sigtimedwait(&kick, NULL, &at_once) > 0 || errno == EINTR) continue;
}

int ck_processor_run(int processor, void *run, struct ck_exit *exit) {
    struct kvm_run *shared = run;
    if (ioctl(processor, KVM_RUN, 0) < 0) {
        int error = errno;
        if (error == EINTR) forget_kicks();
        return -error;
    }
    memset(exit, 0, sizeof *exit);
    exit->reason = shared->exit_reason;
    switch (shared->exit_reason) {
        case KVM_EXIT_IO:
            exit->kind = shared->io.direction == KVM_EXIT_IO_OUT ? CK_EXIT_PORT_OUT : CK_EXIT_PORT_IN;
            exit->port = shared->io.port;
            exit->size = shared->io.size;
            exit->count = shared->io.count;
            exit->data = (uint8_t *)run + shared->io.data_offset;
            return 0;
        case KVM_EXIT_HLT: exit->kind = CK_EXIT_HALT; return 0;
        case KVM_EXIT_INTERNAL_ERROR: exit->detail = shared->internal.suberror; break;
        case KVM_EXIT_FAIL_ENTRY: exit->detail = shared->fail_entry.hardware_entry_failure_reason; break;
        case KVM_EXIT_MMIO: exit->detail = shared->mmio.phys_addr; break;
        default: break;
    }
    exit->kind = CK_EXIT_STOPPED;
    return 0;
}

void ck_processor_set_stop(void *run, bool stop) {
    __atomic_store_n(&((struct kvm_run *)run)->immediate_exit, stop, __ATOMIC_SEQ_CST);
}

int ck_processor_kick(pid_t thread) { return syscall(SYS_tgkill, getpid(), thread, kick_signal()) < 0 ? -errno : 0; }

#else

int ck_processor_adopt_thread(int processor) { return (void)processor, -ENOSYS; }
int ck_processor_run(int processor, void *run, struct ck_exit *exit) { return (void)processor, (void)run, (void)exit, -ENOSYS; }
void ck_processor_set_stop(void *run, bool stop) { (void)run, (void)stop; }
int ck_processor_kick(pid_t thread) { return (void)thread, -ENOSYS; }

#endif
