#include "ckvmguests.h"

#if defined(__x86_64__)

extern const uint8_t ck_guest_counter[], ck_guest_counter_end[], ck_guest_disk[], ck_guest_disk_end[], ck_guest_echo[],
    ck_guest_echo_end[];

static const uint8_t *code(const uint8_t *start, const uint8_t *end, size_t *length) {
    *length = (size_t)(end - start);
    return start;
}

const uint8_t *ck_guest_code(enum ck_guest guest, size_t *length) {
    switch (guest) {
        case CK_GUEST_COUNTER: return code(ck_guest_counter, ck_guest_counter_end, length);
        case CK_GUEST_DISK: return code(ck_guest_disk, ck_guest_disk_end, length);
        case CK_GUEST_ECHO: return code(ck_guest_echo, ck_guest_echo_end, length);
    }
    *length = 0;
    return NULL;
}

#else

const uint8_t *ck_guest_code(enum ck_guest guest, size_t *length) {
    (void)guest;
    *length = 0;
    return NULL;
}

#endif
