/* The log of a disk's writes, as the nbdkit plugin writes it and DiskCapture reads it.
 *
 * Invariants:
 * - A record is written after its data and after every record before it; both files are only appended to.
 * - Clocks never run backwards from one record to the next, unless the wall clock is set: then the difference of
 *   a record's two stamps is not that of the first's.
 */
#ifndef CNBDLOG_H
#define CNBDLOG_H
#include <stdint.h>

enum cnbdlog_kind { CNBDLOG_WRITE = 1, CNBDLOG_ZERO = 2 };

/* One record of the index, in the byte order of the machine: the log never leaves it. 64 bytes. */
struct cnbdlog_record {
    uint32_t kind;
    uint32_t disk;      /* the export, counted from 0 */
    uint64_t sequence;  /* counted from 0 over all disks */
    uint64_t offset;    /* in the disk, bytes */
    uint64_t length;    /* bytes */
    uint64_t position;  /* of the bytes written, in the data file; 0 for zeros */
    uint64_t realtime;  /* CLOCK_REALTIME, nanoseconds */
    uint64_t monotonic; /* CLOCK_MONOTONIC, nanoseconds */
    uint64_t reserved;
};
#endif
