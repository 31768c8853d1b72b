/* What the files of this target share. */
#ifndef CKVM_CONTROL_H
#define CKVM_CONTROL_H

#include <errno.h>
#include <stdint.h>

#if defined(__x86_64__)
#include <linux/kvm.h>
#include <sys/ioctl.h>

/* An ioctl, repeated when a signal interrupts it. */
static inline int ck_control(int fd, unsigned long what, uintptr_t argument) {
    int result;
    do result = ioctl(fd, what, argument);
    while (result < 0 && errno == EINTR);
    return result < 0 ? -errno : result;
}
#endif

#endif
