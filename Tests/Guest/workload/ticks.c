// A byte to port 0xe9 about every millisecond of the guest's time: the host sees how long the guest stood still.

#define _GNU_SOURCE
#include "workload.h"

#include <sched.h>
#include <sys/io.h>

enum { TICK_PORT = 0xe9 };
static const uint64_t TICK_NANOSECONDS = 1000000;

static volatile uint64_t ticks;

static void *work(void *unused)
{
    // Before every other thread of the guest: a tick that is late means that the processor stood still.
    struct sched_param priority = {.sched_priority = 50};
    if (sched_setscheduler(0, SCHED_FIFO, &priority) != 0 || ioperm(TICK_PORT, 1, 1) != 0)
        fail("the ticker gets no priority or no port");
    for (;;) {
        outb((unsigned char)++ticks, TICK_PORT);
        sleep_nanoseconds(TICK_NANOSECONDS);
    }
    return unused;
}

void start_ticks(void)
{
    start_worker(NULL, work, NULL);
}

uint64_t ticks_now(void)
{
    return ticks;
}
