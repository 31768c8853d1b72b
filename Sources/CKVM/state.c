#define _GNU_SOURCE
#include "ckvm_state.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "control.h"

#if defined(__x86_64__)

/* How the kernel gets and sets a part. */
struct part {
    unsigned long get, set;
    size_t size;
};

static const struct part parts[CK_LAST_PART + 1] = {
    [CK_PART_SPECIAL_REGISTERS] = {KVM_GET_SREGS, KVM_SET_SREGS, sizeof(struct kvm_sregs)},
    [CK_PART_REGISTERS] = {KVM_GET_REGS, KVM_SET_REGS, sizeof(struct kvm_regs)},
    [CK_PART_EXTENDED_CONTROL] = {KVM_GET_XCRS, KVM_SET_XCRS, sizeof(struct kvm_xcrs)},
    [CK_PART_EXTENDED_STATE] = {KVM_GET_XSAVE, KVM_SET_XSAVE, sizeof(struct kvm_xsave)},
    [CK_PART_DEBUG_REGISTERS] = {KVM_GET_DEBUGREGS, KVM_SET_DEBUGREGS, sizeof(struct kvm_debugregs)},
    [CK_PART_EVENTS] = {KVM_GET_VCPU_EVENTS, KVM_SET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events)},
    [CK_PART_RUN_STATE] = {KVM_GET_MP_STATE, KVM_SET_MP_STATE, sizeof(struct kvm_mp_state)},
};

int64_t ck_processor_part_size(int machine, enum ck_processor_part part) {
    if (part != CK_PART_EXTENDED_STATE) return (int64_t)parts[part].size;
    /* More than the structure where the guest has registers that Linux must be asked for, like those of AMX. */
    int size = ck_control(machine, KVM_CHECK_EXTENSION, KVM_CAP_XSAVE2);
    return size > (int)sizeof(struct kvm_xsave) ? size : (int64_t)sizeof(struct kvm_xsave);
}

int ck_processor_get_part(int processor, enum ck_processor_part part, void *bytes) {
    if (part == CK_PART_EXTENDED_STATE) {
        int error = ck_control(processor, KVM_GET_XSAVE2, (uintptr_t)bytes);
        if (error != -ENOTTY && error != -EINVAL) return error;
    }
    return ck_control(processor, parts[part].get, (uintptr_t)bytes);
}

int ck_processor_set_part(int processor, enum ck_processor_part part, const void *bytes) {
    return ck_control(processor, parts[part].set, (uintptr_t)bytes);
}

/* The time stamp counter comes last: what is set before it takes time. EFER and the APIC's base are special registers. */
static const uint32_t state_registers[] = {
    0x174, 0x175, 0x176,                               /* SYSENTER_CS, _ESP, _EIP */
    0x1a0, 0x277,                                      /* MISC_ENABLE, PAT */
    0xc0000081, 0xc0000082, 0xc0000083, 0xc0000084,    /* STAR, LSTAR, CSTAR, SFMASK */
    0xc0000102, 0xc0000103,                            /* KERNEL_GS_BASE, TSC_AUX */
    0x3b, 0x10,                                        /* TSC_ADJUST, TSC */
};

int ck_kvm_state_registers(int kvm, uint32_t *indexes, int capacity) {
    struct kvm_msr_list count = {0};
    int error = ck_control(kvm, KVM_GET_MSR_INDEX_LIST, (uintptr_t)&count);
    if (error != -E2BIG) return error ? error : -EPROTO;
    struct kvm_msr_list *list = calloc(1, sizeof *list + count.nmsrs * sizeof(uint32_t));
    if (!list) return -ENOMEM;
    list->nmsrs = count.nmsrs;
    int found = ck_control(kvm, KVM_GET_MSR_INDEX_LIST, (uintptr_t)list);
    for (size_t i = 0; found >= 0 && i < sizeof state_registers / sizeof *state_registers; i++)
        for (uint32_t known = 0; known < list->nmsrs; known++) {
            if (list->indices[known] != state_registers[i]) continue;
            if (found < capacity) indexes[found] = state_registers[i];
            found++;
            break;
        }
    free(list);
    return found > capacity ? -E2BIG : found;
}

/* The kernel's structure for one register. */
union one_register {
    struct kvm_msrs header;
    uint8_t bytes[sizeof(struct kvm_msrs) + sizeof(struct kvm_msr_entry)];
};

int ck_processor_get_register(int processor, uint32_t index, uint64_t *value) {
    union one_register one = {.header.nmsrs = 1};
    struct kvm_msr_entry entry = {.index = index};
    memcpy(one.bytes + sizeof one.header, &entry, sizeof entry);
    int done = ck_control(processor, KVM_GET_MSRS, (uintptr_t)&one);
    memcpy(&entry, one.bytes + sizeof one.header, sizeof entry);
    *value = entry.data;
    return done < 0 ? done : done == 1 ? 0 : -EINVAL;
}

int ck_processor_set_register(int processor, uint32_t index, uint64_t value) {
    union one_register one = {.header.nmsrs = 1};
    const struct kvm_msr_entry entry = {.index = index, .data = value};
    memcpy(one.bytes + sizeof one.header, &entry, sizeof entry);
    int done = ck_control(processor, KVM_SET_MSRS, (uintptr_t)&one);
    return done < 0 ? done : done == 1 ? 0 : -EINVAL;
}

_Static_assert(sizeof(struct kvm_cpuid_entry2) == ck_cpuid_entry_size, "the kernel's interface");

int ck_kvm_host_cpuid(int kvm, void *entries, int capacity) {
    struct kvm_cpuid2 *table = calloc(1, sizeof *table + (size_t)capacity * ck_cpuid_entry_size);
    if (!table) return -ENOMEM;
    table->nent = (uint32_t)capacity;
    int result = ck_control(kvm, KVM_GET_SUPPORTED_CPUID, (uintptr_t)table);
    if (!result) {
        result = (int)table->nent;
        memcpy(entries, table->entries, table->nent * ck_cpuid_entry_size);
    }
    free(table);
    return result;
}

int ck_processor_set_cpuid(int processor, const void *entries, int count) {
    struct kvm_cpuid2 *table = calloc(1, sizeof *table + (size_t)count * ck_cpuid_entry_size);
    if (!table) return -ENOMEM;
    table->nent = (uint32_t)count;
    memcpy(table->entries, entries, (size_t)count * ck_cpuid_entry_size);
    int result = ck_control(processor, KVM_SET_CPUID2, (uintptr_t)table);
    free(table);
    return result;
}

int ck_processor_start(int processor, const struct ck_start *start) {
    struct kvm_sregs special;
    int error = ck_control(processor, KVM_GET_SREGS, (uintptr_t)&special);
    if (error) return error;
    const struct kvm_segment data = {.limit = 0xffffffff, .selector = 16, .type = 3, .present = 1, .db = 1, .s = 1, .g = 1};
    const struct kvm_segment code = {.limit = 0xffffffff, .selector = 8, .type = 11, .present = 1, .l = 1, .s = 1, .g = 1};
    special.cs = code;
    special.ds = special.es = special.fs = special.gs = special.ss = data;
    special.cr0 = 0x80050033; /* PG, AM, WP, NE, ET, MP, PE */
    special.cr3 = start->page_tables;
    special.cr4 = 0x620;  /* PAE, OSFXSR, OSXMMEXCPT */
    special.efer = 0x500; /* LME, LMA */
    error = ck_control(processor, KVM_SET_SREGS, (uintptr_t)&special);
    if (error) return error;
    const struct kvm_regs registers = {
        .rip = start->instruction, .rsp = start->stack, .rflags = 2, .rdi = start->rdi, .rsi = start->rsi, .rdx = start->rdx,
        .rcx = start->rcx, .r8 = start->r8, .r9 = start->r9};
    error = ck_control(processor, KVM_SET_REGS, (uintptr_t)&registers);
    if (error) return error;
    /* Processors other than the first would wait for the first to start them, if there were an interrupt controller. */
    const struct kvm_mp_state runnable = {.mp_state = KVM_MP_STATE_RUNNABLE};
    return ck_control(processor, KVM_SET_MP_STATE, (uintptr_t)&runnable);
}

#else

int64_t ck_processor_part_size(int machine, enum ck_processor_part part) { return (void)machine, (void)part, -ENOSYS; }
int ck_processor_get_part(int processor, enum ck_processor_part part, void *bytes) {
    return (void)processor, (void)part, (void)bytes, -ENOSYS;
}
int ck_processor_set_part(int processor, enum ck_processor_part part, const void *bytes) {
    return (void)processor, (void)part, (void)bytes, -ENOSYS;
}
int ck_kvm_state_registers(int kvm, uint32_t *indexes, int capacity) { return (void)kvm, (void)indexes, (void)capacity, -ENOSYS; }
int ck_processor_get_register(int processor, uint32_t index, uint64_t *value) {
    return (void)processor, (void)index, (void)value, -ENOSYS;
}
int ck_processor_set_register(int processor, uint32_t index, uint64_t value) {
    return (void)processor, (void)index, (void)value, -ENOSYS;
}
int ck_kvm_host_cpuid(int kvm, void *entries, int capacity) { return (void)kvm, (void)entries, (void)capacity, -ENOSYS; }
int ck_processor_set_cpuid(int processor, const void *entries, int count) {
    return (void)processor, (void)entries, (void)count, -ENOSYS;
}
int ck_processor_start(int processor, const struct ck_start *start) { return (void)processor, (void)start, -ENOSYS; }

#endif
