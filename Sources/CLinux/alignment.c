/* On its own because linux/stat.h, whose statx has the alignment, clashes with sys/stat.h. */
#define _GNU_SOURCE
#include "clinux_files.h"

#include <fcntl.h>
#include <linux/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef AT_EMPTY_PATH
#define AT_EMPTY_PATH 0x1000
#endif

uint32_t ck_direct_alignment(int fd) {
    struct statx info;
    if (syscall(SYS_statx, fd, "", AT_EMPTY_PATH, STATX_DIOALIGN, &info)) return 0;
    if (!(info.stx_mask & STATX_DIOALIGN)) return 0;
    return info.stx_dio_offset_align > info.stx_dio_mem_align ? info.stx_dio_offset_align : info.stx_dio_mem_align;
}
