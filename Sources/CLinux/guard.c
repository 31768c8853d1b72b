/* The guarded copy.
 *
 * A thread that copies publishes a frame: the range of the mapping it touches and where to go when
 * that range faults. The handler takes a fault as ours only when it comes from the kernel and its
 * address lies in the frame's range; all others go to the handler that was there before.
 * The frame costs a setjmp without signal mask, a few nanoseconds, so that any copy routine can be
 * used, and libpmem's too; the handler restores the mask before it jumps.
 */
#define _GNU_SOURCE
#include "clinux_guard.h"

#include <errno.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <ucontext.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

enum { fault_count = 2, page_mask = 4095 };
static const int fault_signals[fault_count] = {SIGBUS, SIGSEGV};

struct frame {
    sigjmp_buf resume;
    uintptr_t low, high;
    struct ck_fault fault;
};

/* Static TLS: no allocation on first use, so that the handler may read it. */
#define STATIC_TLS __attribute__((tls_model("initial-exec")))
static _Thread_local struct frame *volatile current STATIC_TLS;
static _Thread_local bool chaining STATIC_TLS;
/* 0: not known, 1: the fault signals get through, 2: this thread blocks them. */
static _Thread_local char mask_state STATIC_TLS;

/* What was installed before us: at the first time, and when we last came back to the front. */
static struct sigaction first_previous[fault_count], last_previous[fault_count];
static pthread_mutex_t install_lock = PTHREAD_MUTEX_INITIALIZER;
static bool installed;

static int slot_of(int signal) { return signal == SIGBUS ? 0 : 1; }

/* Hands a fault that is not ours to the handler that was there before. */
static void pass_on(int signal, siginfo_t *info, void *context) {
    /* Whoever replaced us may have kept us as its predecessor: the second time round goes to the
     * handler that was there before either. */
    const struct sigaction *next = chaining ? &first_previous[slot_of(signal)] : &last_previous[slot_of(signal)];
    if (!(next->sa_flags & SA_SIGINFO) && next->sa_handler == SIG_IGN && info->si_code <= 0) return;
    if (!(next->sa_flags & SA_SIGINFO) && (next->sa_handler == SIG_DFL || next->sa_handler == SIG_IGN)) {
        struct sigaction standard = {.sa_handler = SIG_DFL};
        sigaction(signal, &standard, NULL);
        if (info->si_code <= 0) raise(signal); /* sent by somebody: it would not come again by itself */
        return;
    }
    sigset_t before, during = next->sa_mask;
    if (!(next->sa_flags & SA_NODEFER)) sigaddset(&during, signal);
    pthread_sigmask(SIG_BLOCK, &during, &before);
    bool outer = chaining;
    chaining = true;
    if (next->sa_flags & SA_SIGINFO)
        next->sa_sigaction(signal, info, context);
    else
        next->sa_handler(signal);
    chaining = outer;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

static void on_fault(int signal, siginfo_t *info, void *context) {
    struct frame *frame = current;
    uintptr_t address = (uintptr_t)info->si_addr;
    if (frame && info->si_code > 0 && address >= frame->low && address < frame->high) {
        current = NULL;
        frame->fault = (struct ck_fault){signal, info->si_code, address};
        /* The mask as it was at the fault, whatever a wrapper around this handler has blocked. */
        pthread_sigmask(SIG_SETMASK, &((ucontext_t *)context)->uc_sigmask, NULL);
        siglongjmp(frame->resume, 1);
    }
    pass_on(signal, info, context);
}

int ck_guard_install(void) {
    int result = 0;
    pthread_mutex_lock(&install_lock);
    for (int i = 0; i < fault_count && result == 0; i++) {
        struct sigaction there;
        if (sigaction(fault_signals[i], NULL, &there)) {
            result = -errno;
            break;
        }
        if ((there.sa_flags & SA_SIGINFO) && there.sa_sigaction == on_fault) continue;
        last_previous[i] = there;
        if (!installed) first_previous[i] = there;
        struct sigaction ours = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
        if (sigaction(fault_signals[i], &ours, NULL)) result = -errno;
    }
    if (result == 0) installed = true;
    pthread_mutex_unlock(&install_lock);
    return result;
}

/* A fault whose signal is blocked kills the process. Threads of hypervisors may block everything:
 * looks once per thread whether this one does. */
static bool faults_are_blocked(void) {
    if (mask_state == 0) {
        sigset_t mask;
        pthread_sigmask(SIG_SETMASK, NULL, &mask);
        mask_state = sigismember(&mask, SIGBUS) || sigismember(&mask, SIGSEGV) ? 2 : 1;
    }
    return mask_state == 2;
}

static void *load_routine(void *to, const void *from, size_t count, unsigned flags) {
    (void)flags;
    return memcpy(to, from, count);
}

static void order_stores(void) {
#if defined(__x86_64__)
    _mm_sfence(); /* non-temporal stores are weakly ordered even between cores */
#else
    atomic_thread_fence(memory_order_seq_cst);
#endif
}

static int guarded(void *to, const void *from, uintptr_t mapped, size_t count, ck_copy_routine routine,
                   unsigned flags, struct ck_fault *fault) {
    struct frame frame;
    frame.low = mapped & ~(uintptr_t)page_mask;
    frame.high = (mapped + count + page_mask) & ~(uintptr_t)page_mask;
    if (sigsetjmp(frame.resume, 0)) {
        *fault = frame.fault;
        return -1;
    }
    current = &frame;
    atomic_signal_fence(memory_order_seq_cst);
    routine(to, from, count, flags);
    atomic_signal_fence(memory_order_seq_cst);
    current = NULL;
    return 0;
}

static int guarded_unblocked(void *to, const void *from, uintptr_t mapped, size_t count, ck_copy_routine routine,
                             unsigned flags, struct ck_fault *fault) {
    if (!faults_are_blocked()) return guarded(to, from, mapped, count, routine, flags, fault);
    sigset_t faults, before;
    sigemptyset(&faults);
    for (int i = 0; i < fault_count; i++) sigaddset(&faults, fault_signals[i]);
    pthread_sigmask(SIG_UNBLOCK, &faults, &before);
    int result = guarded(to, from, mapped, count, routine, flags, fault);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return result;
}

int ck_guarded_load(void *to, const void *mapped, size_t count, struct ck_fault *fault) {
    return guarded_unblocked(to, mapped, (uintptr_t)mapped, count, load_routine, 0, fault);
}

int ck_guarded_scan(void *result, const void *mapped, size_t count, ck_copy_routine routine, struct ck_fault *fault) {
    return guarded_unblocked(result, mapped, (uintptr_t)mapped, count, routine, 0, fault);
}

int ck_guarded_store(void *mapped, const void *from, size_t count, ck_copy_routine routine, unsigned flags,
                     struct ck_fault *fault) {
    int result = guarded_unblocked(mapped, from, (uintptr_t)mapped, count, routine, flags, fault);
    order_stores();
    return result;
}
