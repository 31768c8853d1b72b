/* A virtual processor: run by one thread, interrupted by others. */
#ifndef CKVM_PROCESSOR_H
#define CKVM_PROCESSOR_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Why a processor came out of the guest. */
enum ck_exit_kind { CK_EXIT_PORT_OUT, CK_EXIT_PORT_IN, CK_EXIT_HALT, CK_EXIT_STOPPED };

struct ck_exit {
    enum ck_exit_kind kind;
    uint16_t port;
    uint32_t size;     /* bytes of one access: 1, 2, 4 */
    uint32_t count;    /* accesses, one behind the other in `data` */
    uint8_t *data;     /* in the shared page; for CK_EXIT_PORT_IN to be filled in before the next run */
    uint32_t reason;   /* the kernel's own number, for CK_EXIT_STOPPED: the processor can't go on */
    uint64_t detail;
};

/* To be called once by the thread that will run the processor: signals go to other threads from here on, and only the kick
 * interrupts the guest. No signal handler is installed or needed. */
int ck_processor_adopt_thread(int processor);

/* Lets the guest run. Port input and output of the previous exit is completed first. -EINTR: kicked (or otherwise interrupted): the
 * processor's state is whole then, with nothing left to complete. */
int ck_processor_run(int processor, void *run, struct ck_exit *exit);

/* While set, ck_processor_run completes what is to be completed and returns -EINTR without running the guest. */
void ck_processor_set_stop(void *run, bool stop);

/* Gets a thread out of the guest. Together with ck_processor_set_stop before it, no kick is ever lost: a thread that is not in the guest
 * yet sees the mark, one that is gets the signal. */
int ck_processor_kick(pid_t thread);

#endif
