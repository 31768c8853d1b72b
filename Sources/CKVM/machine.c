#define _GNU_SOURCE
#include "ckvm_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include "control.h"

#if defined(__x86_64__)

/* What ReferenceMachine can't do without, with the names that the kernel's manual has. */
static const struct {
    int number;
    const char *name;
} needed[] = {
    {KVM_CAP_USER_MEMORY, "KVM_CAP_USER_MEMORY"}, {KVM_CAP_IMMEDIATE_EXIT, "KVM_CAP_IMMEDIATE_EXIT"},
    {KVM_CAP_EXT_CPUID, "KVM_CAP_EXT_CPUID"},     {KVM_CAP_VCPU_EVENTS, "KVM_CAP_VCPU_EVENTS"},
    {KVM_CAP_MP_STATE, "KVM_CAP_MP_STATE"},       {KVM_CAP_DEBUGREGS, "KVM_CAP_DEBUGREGS"},
    {KVM_CAP_XSAVE, "KVM_CAP_XSAVE"},             {KVM_CAP_XCRS, "KVM_CAP_XCRS"},
};

/* Where processors of Intel without unrestricted guests keep three pages for real mode: behind all memory that is allowed. */
enum { real_mode_pages = 0xfffbd000 };

int ck_kvm_open(const char **missing) {
    int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (kvm < 0) return -errno;
    int error = ioctl(kvm, KVM_GET_API_VERSION, 0) == KVM_API_VERSION ? 0 : -EPROTO;
    for (size_t i = 0; !error && i < sizeof needed / sizeof *needed; i++) {
        if (ioctl(kvm, KVM_CHECK_EXTENSION, needed[i].number) > 0) continue;
        *missing = needed[i].name;
        error = -ENOTSUP;
    }
    if (!error) return kvm;
    close(kvm);
    return error;
}

int ck_kvm_create_machine(int kvm) {
    int machine = ck_control(kvm, KVM_CREATE_VM, 0);
    if (machine < 0) return machine;
    int error = ck_control(machine, KVM_SET_TSS_ADDR, real_mode_pages);
    if (!error) return machine;
    close(machine);
    return error;
}

int ck_machine_set_memory(int machine, uint32_t slot, uint64_t guest_address, void *host, uint64_t length) {
    struct kvm_userspace_memory_region region = {
        .slot = slot, .guest_phys_addr = guest_address, .memory_size = length, .userspace_addr = (uintptr_t)host};
    return ck_control(machine, KVM_SET_USER_MEMORY_REGION, (uintptr_t)&region);
}

int ck_machine_create_processor(int kvm, int machine, uint32_t index, void **run, size_t *run_length) {
    int length = ck_control(kvm, KVM_GET_VCPU_MMAP_SIZE, 0);
    if (length < 0) return length;
    int processor = ck_control(machine, KVM_CREATE_VCPU, index);
    if (processor < 0) return processor;
    *run_length = (size_t)length;
    *run = mmap(NULL, *run_length, PROT_READ | PROT_WRITE, MAP_SHARED, processor, 0);
    if (*run != MAP_FAILED) return processor;
    int error = -errno;
    close(processor);
    return error;
}

#else

int ck_kvm_open(const char **missing) { return (void)missing, -ENOSYS; }
int ck_kvm_create_machine(int kvm) { return (void)kvm, -ENOSYS; }
int ck_machine_set_memory(int machine, uint32_t slot, uint64_t guest_address, void *host, uint64_t length) {
    return (void)machine, (void)slot, (void)guest_address, (void)host, (void)length, -ENOSYS;
}
int ck_machine_create_processor(int kvm, int machine, uint32_t index, void **run, size_t *run_length) {
    return (void)kvm, (void)machine, (void)index, (void)run, (void)run_length, -ENOSYS;
}

#endif

void ck_processor_unmap(void *run, size_t run_length) { munmap(run, run_length); }
