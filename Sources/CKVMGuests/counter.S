/* CK_GUEST_COUNTER, CK_GUEST_ECHO: see ckvmguests.h. */
#if defined(__x86_64__)
#include "guests.h"

#define KERNEL_GS_BASE 0xc0000102 /* a model-specific register */

.intel_syntax noprefix
.section .rodata
.globl ck_guest_counter, ck_guest_counter_end, ck_guest_echo, ck_guest_echo_end

/* rbx: random number; rbp: digest; xmm1: sum of the digests after each stage, so that the state of vector registers counts as well (loads
 * and stores only: kernels that emulate guests instruction by instruction know no more of them); r10: stages done; r12: this processor's
 * part; r13: its size as a mask; r14: stages to do; r15: rounds in a stage. */
ck_guest_counter:
    mov r14, rdx
    mov r15, rcx
    mov r12, rdi
    imul r12, r8
    add r12, WORK
    lea r13, [r8 - 8]
    seed_random r9
    /* Kept by the processor alone until the end. */
    mov dr0, rbx
    mov ecx, KERNEL_GS_BASE
    mov eax, ebx
    xor edx, edx
    wrmsr
    xor ebp, ebp
    xor r10d, r10d
    sub rsp, 16
    mov [rsp], rbp
    mov [rsp + 8], rbp
    movdqu xmm1, [rsp]
stage:
    mov rcx, r15
round:
    next_random
    mov rax, rbx
    and rax, r13
    add [r12 + rax], rbx
    rol rbp, 5
    xor rbp, [r12 + rax]
    dec rcx
    jnz round

    movdqu [rsp], xmm1
    add [rsp], rbp
    movdqu xmm1, [rsp]
    /* Publish, wait for all, fold in the neighbour's. Slots of two stages: nobody is more than one stage ahead. */
    mov ecx, r10d
    and ecx, 1
    shl ecx, 6
    mov [rcx + rdi * 8 + SLOTS], rbp
    inc r10
    lock inc qword ptr [ARRIVED]
    mov r11, r10
    imul r11, rsi
wait_for_stage:
    pause
    cmp [ARRIVED], r11
    jb wait_for_stage
    lea rax, [rdi + 1]
    cmp rax, rsi
    jb has_neighbour
    xor eax, eax
has_neighbour:
    rol rbp, 7
    add rbp, [rcx + rax * 8 + SLOTS]
    test rdi, rdi
    jnz quiet
    mov al, '.'
    mov edx, SERIAL
    out dx, al
quiet:
    dec r14
    jnz stage

    movdqu [rsp], xmm1
    xor rbp, [rsp]
    mov rax, dr0
    add rbp, rax
    mov ecx, KERNEL_GS_BASE
    rdmsr
    shl rdx, 32
    or rax, rdx
    xor rbp, rax
    finish
ck_guest_counter_end:

ck_guest_echo:
    mov edx, SERIAL_STATUS
    in al, dx
    test al, 1
    jz ck_guest_echo
    mov edx, SERIAL
    in al, dx
    cmp al, '.'
    je echo_done
    xor al, 0x20
    out dx, al
    jmp ck_guest_echo
echo_done:
    hlt
    jmp echo_done
ck_guest_echo_end:

#endif
.section .note.GNU-stack, "", @progbits
