/* Guest programs for ReferenceMachine: machine code for 64-bit mode that runs at whatever address it is loaded. What each computes
 * depends on its arguments alone, however the machine is stopped, checkpointed and brought back.
 *
 * They start with flat segments and a stack, interrupts off; rdi: which processor this is, rsi: how many there are; rdx, rcx, r8, r9: the
 * program's arguments, the same on every processor. They halt when they are done.
 */
#ifndef CKVMGUESTS_H
#define CKVMGUESTS_H

#include <stddef.h>
#include <stdint.h>

enum ck_guest {
    /* Every processor changes its own part of memory at random places and folds what it finds into a digest; in each stage it waits for
     * the others and folds in its neighbour's digest; some of its sum lies in a vector register, a debug register and a
     * model-specific register until the end. The first one prints a full stop for each stage, and at the end the
     * digest of all as 16 hexadecimal digits and a line feed.
     * rdx: stages; rcx: rounds in a stage; r8: bytes of each part, a power of two; r9: seed. Memory from 1 MiB on. */
    CK_GUEST_COUNTER,
    /* Every processor keeps four requests under way at a disk of its own, the one with its number: reads, writes and flushes that
     * overlap. What it reads goes into its digest and stays in the buffers that it writes from. The first one prints the digest of all.
     * rdx: requests, and four more; rcx: each disk's sectors less 7, a power of two; r8: seed. 64 KiB for each processor from 1 MiB on. */
    CK_GUEST_DISK,
    /* Sends back what comes in at the serial port, in the other case, until a full stop. */
    CK_GUEST_ECHO,
};

/* The program's code; NULL where there is none: this is no x86-64 system. */
const uint8_t *ck_guest_code(enum ck_guest guest, size_t *length);

#endif
