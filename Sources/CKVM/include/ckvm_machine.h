/* The kernel's virtual machines: their memory and processors. */
#ifndef CKVM_MACHINE_H
#define CKVM_MACHINE_H

#include <stddef.h>
#include <stdint.h>

/* /dev/kvm, close-on-exec. -EPROTO: it speaks another version of its interface. -ENOTSUP: it lacks what ReferenceMachine needs:
 * `*missing` then names that. */
int ck_kvm_open(const char **missing);

/* A machine without memory, processors and interrupt controller. */
int ck_kvm_create_machine(int kvm);

/* Puts `length` bytes at `host` into the machine at a physical address. The pages are this process's: what tracks its writes tracks the
 * machine's. */
int ck_machine_set_memory(int machine, uint32_t slot, uint64_t guest_address, void *host, uint64_t length);

/* A processor, and the page that it shares with the kernel: `*run`, of `*run_length` bytes, to be unmapped by ck_processor_unmap. */
int ck_machine_create_processor(int kvm, int machine, uint32_t index, void **run, size_t *run_length);
void ck_processor_unmap(void *run, size_t run_length);

#endif
