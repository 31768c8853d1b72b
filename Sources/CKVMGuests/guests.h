/* What the guest programs share: places in memory, and the ports of the machine. */

/* The programs' shared page. */
#define ARRIVED 0x20000   /* processors that have arrived at a barrier, all stages together */
#define FINISHED 0x20008  /* processors that are done */
#define SLOTS 0x20040     /* digests after a stage: eight for even stages, eight for odd ones */
#define RESULTS 0x200c0   /* digests at the end */
#define REQUESTS 0x20400  /* 64 bytes for each processor, 16 for each of its requests under way: status, command, bytes */
#define WORK 0x100000     /* where the programs' data begins */

#define SERIAL 0x3f8
#define SERIAL_STATUS 0x3fd
/* Of the first disk; the next one's are 32 further. */
#define DISK_SECTOR 0x600
#define DISK_BUFFER 0x604
#define DISK_COUNT 0x608
#define DISK_STATUS 0x60c
#define DISK_COMMAND 0x610

/* The next number of a xorshift generator, in rbx. Changes rax. */
.macro next_random
    mov rax, rbx
    shl rax, 13
    xor rbx, rax
    mov rax, rbx
    shr rax, 7
    xor rbx, rax
    mov rax, rbx
    shl rax, 17
    xor rbx, rax
.endm

/* rbx = seed in \seed, spread; never 0. Changes rax. */
.macro seed_random seed
    lea rbx, [rdi + 1]
    movabs rax, 0x9e3779b97f4a7c15
    imul rbx, rax
    xor rbx, \seed
    or rbx, 1
.endm

/* The end of a program: leaves this processor's digest, rbp; the first one, rdi = 0, of rsi, waits for the others, folds all digests
 * into one, and prints it as 16 hexadecimal digits and a line feed. */
.macro finish
    mov [rdi * 8 + RESULTS], rbp
    lock inc qword ptr [FINISHED]
    test rdi, rdi
    jnz 5f
1:  pause
    cmp [FINISHED], rsi
    jb 1b
    xor ebp, ebp
    xor ecx, ecx
2:  rol rbp, 9
    add rbp, [rcx * 8 + RESULTS]
    inc rcx
    cmp rcx, rsi
    jb 2b
    mov ecx, 16
    mov edx, SERIAL
3:  rol rbp, 4
    mov eax, ebp
    and eax, 15
    add al, '0'
    cmp al, '9' + 1
    jb 4f
    add al, 'a' - '9' - 1
4:  out dx, al
    dec ecx
    jnz 3b
    mov al, 10
    out dx, al
5:  hlt
    jmp 5b
.endm
