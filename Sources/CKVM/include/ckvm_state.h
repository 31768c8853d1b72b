/* The state of a virtual processor, in the layouts of the kernel's interface (little-endian, fixed). */
#ifndef CKVM_STATE_H
#define CKVM_STATE_H

#include <stddef.h>
#include <stdint.h>

/* In the order in which they are to be set. */
enum ck_processor_part {
    CK_PART_SPECIAL_REGISTERS = 1, /* struct kvm_sregs */
    CK_PART_REGISTERS = 2,         /* struct kvm_regs */
    CK_PART_EXTENDED_CONTROL = 3,  /* struct kvm_xcrs */
    CK_PART_EXTENDED_STATE = 4,    /* struct kvm_xsave, as long as this host makes it: x87, SSE, AVX and what follows */
    CK_PART_DEBUG_REGISTERS = 5,   /* struct kvm_debugregs */
    CK_PART_EVENTS = 6,            /* struct kvm_vcpu_events */
    CK_PART_RUN_STATE = 7,         /* struct kvm_mp_state */
};
enum { CK_FIRST_PART = CK_PART_SPECIAL_REGISTERS, CK_LAST_PART = CK_PART_RUN_STATE };

/* How many bytes a part has for this machine on this host. */
int64_t ck_processor_part_size(int machine, enum ck_processor_part part);
int ck_processor_get_part(int processor, enum ck_processor_part part, void *bytes);
int ck_processor_set_part(int processor, enum ck_processor_part part, const void *bytes);

/* The model-specific registers that belong to a processor's state and that this kernel has; returns how many. */
int ck_kvm_state_registers(int kvm, uint32_t *indexes, int capacity);
/* One model-specific register. -EINVAL: this processor has no such register, or the value is none for it. */
int ck_processor_get_register(int processor, uint32_t index, uint64_t *value);
int ck_processor_set_register(int processor, uint32_t index, uint64_t value);

enum { ck_cpuid_entry_size = 40 };
/* What this host can offer a guest: `capacity` entries of struct kvm_cpuid_entry2. Returns how many; -E2BIG: more than that. */
int ck_kvm_host_cpuid(int kvm, void *entries, int capacity);
/* What the guest is told of its processor; before anything else is set. */
int ck_processor_set_cpuid(int processor, const void *entries, int count);

/* How a processor starts: in 64-bit mode, interrupts off, with flat segments. */
struct ck_start {
    uint64_t page_tables, instruction, stack;
    uint64_t rdi, rsi, rdx, rcx, r8, r9;
};
int ck_processor_start(int processor, const struct ck_start *start);

#endif
