/* CK_GUEST_DISK: see ckvmguests.h. */
#if defined(__x86_64__)
#include "guests.h"

#define READ 1
#define WRITE 2
#define FLUSH 3
/* Every 128th byte of a buffer is looked at and changed: enough to see which request was carried out when, at few instructions. */
#define STRIDE 128

/* On the stack: how much further than the first disk's this processor's ports are, where its requests and buffers are, rdi and rsi. */
#define PORTS 0
#define PLACES 8
#define BUFFERS 16
#define INDEX 24
#define COUNT 32

.macro set_disk port, value
    mov edx, \port
    add edx, [rsp + PORTS]
    mov eax, \value
    out dx, eax
.endm

.intel_syntax noprefix
.section .rodata
.globl ck_guest_disk, ck_guest_disk_end

/* rbx: random number; rbp: digest; r10: request number; r12: its place in REQUESTS;
 * r13: its buffer; r14: mask of sectors; r15: how many requests there are. */
ck_guest_disk:
    sub rsp, 40
    mov [rsp + INDEX], rdi
    mov [rsp + COUNT], rsi
    mov eax, edi
    shl eax, 5
    mov [rsp + PORTS], rax
    mov r12, rdi
    shl r12, 6
    add r12, REQUESTS
    mov [rsp + PLACES], r12
    mov rax, rdi
    shl rax, 16
    add rax, WORK
    mov [rsp + BUFFERS], rax
    seed_random r8
    mov r15, rdx
    lea r14, [rcx - 1]
    xor ebp, ebp
    xor r10d, r10d
    /* Four places, as if a flush had just succeeded in each. */
    mov ecx, 4
empty:
    mov dword ptr [r12], 1
    mov dword ptr [r12 + 4], FLUSH
    mov dword ptr [r12 + 8], 0
    add r12, 16
    dec ecx
    jnz empty

again:
    mov ecx, r10d
    and ecx, 3
    mov r12d, ecx
    shl r12d, 4
    add r12, [rsp + PLACES]
    mov r13d, ecx
    shl r13d, 14
    add r13, [rsp + BUFFERS]
wait_for_place:
    pause
    mov eax, [r12]
    test eax, eax
    jz wait_for_place
    rol rbp, 5
    xor rbp, rax
    cmp dword ptr [r12 + 4], READ
    jne issue
    mov ecx, [r12 + 8]
look:
    sub ecx, STRIDE
    rol rbp, 5
    add rbp, [r13 + rcx]
    test ecx, ecx
    jnz look

issue:
    /* The last four rounds only wait. */
    lea rax, [r10 + 4]
    cmp rax, r15
    jae counted
    next_random
    mov rdi, rbx            /* bits 0-2: sectors less one; 8 on: sector; 48-49, 50-53: what to do */
    mov ecx, edi
    and ecx, 7
    inc ecx
    mov esi, ecx            /* sectors */
    shl ecx, 9
    mov [r12 + 8], ecx      /* bytes */
    mov r9, rdi
    shr r9, 48
    mov r11d, FLUSH
    test r9d, 0x3c
    jz chosen
    mov r11d, READ
    test r9d, 2
    jz chosen
    mov r11d, WRITE
fill:
    sub ecx, STRIDE
    next_random
    mov [r13 + rcx], rbx
    test ecx, ecx
    jnz fill
chosen:
    mov [r12 + 4], r11d
    mov dword ptr [r12], 0
    shr rdi, 8
    and rdi, r14
    set_disk DISK_SECTOR, edi
    set_disk DISK_BUFFER, r13d
    set_disk DISK_COUNT, esi
    set_disk DISK_STATUS, r12d
    set_disk DISK_COMMAND, r11d
counted:
    inc r10
    cmp r10, r15
    jb again
    mov rdi, [rsp + INDEX]
    mov rsi, [rsp + COUNT]
    finish
ck_guest_disk_end:

#endif
.section .note.GNU-stack, "", @progbits
