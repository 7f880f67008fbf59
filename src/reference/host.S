# Follows a program on this processor, one instruction at a time.
#
# Linux x86-64, raw system calls, no library. Started by hostProcess.ts, which has the other end of all this:
#   standard input   messages: u64 length, then so many bytes
#   standard output  answers
#   descriptor 3     the program's memory as a file, which is mapped shared: the parent reads and writes it there
#
# The first message says what to map: u64 fs base, u64 gs base, then { u64 address, size, protection, offset } each.
# The answer is { u64 what failed, u64 error number }: 0 and 0, or a number of STEP_..., or FIRST_MAPPING + n.
# From then on only read, write, exit and sigreturn are allowed (seccomp, strict mode).
#
# Every other message is { 18 registers } and steps { u64 address, flags, n, n of { u64 address, size } }. A step
# executes its instruction with those flags and the trap flag, and answers with what the signal frame holds afterwards
# (23 words), the signal (a word), and the bytes of its n ranges, each padded to whole words. The message ends with the
# first step that ends otherwise than by a single-step trap, or that does not lead to the address of the next: nothing
# is executed that the parent has not seen first.

        .set    WORK, 0x5f1000000000    # variables, then:
        .set    IN, 0x5f1000001000      #   the message
        .set    IN_SIZE, 0x100000
        .set    STACK, 0x5f1000110000   #   the handler's stack
        .set    STACK_SIZE, 0x10000
        .set    OUT, 0x5f1000120000     #   answers not yet written
        .set    OUT_HIGH, 0x5f1000138000 #  write them when they reach here
        .set    WORK_SIZE, 0x150000

        # Variables, from WORK (%rbp)
        .set    STEP, 0                 # the step under way; 0 before the first
        .set    END, 8                  # the end of the message
        .set    FREE, 16                # the end of the answers in OUT

        .set    GREGS, 40               # in struct ucontext: r8-r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags ...
        .set    GREGS_SAVED, 23         # ... csgsfs err trapno oldmask cr2
        .set    GREGS_SET, 18
        .set    RIP, 128
        .set    EFLAGS, 136
        .set    TRAPNO, 160
        .set    TRAP_FLAG, 0x100

        .set    STEP_STACK, 1
        .set    STEP_SIGNALS, 2
        .set    STEP_BASES, 3
        .set    STEP_SECCOMP, 4
        .set    FIRST_MAPPING, 16

        .text
        .globl  _start
_start:
        # mmap(WORK, WORK_SIZE, PROT_READ|PROT_WRITE, MAP_PRIVATE|MAP_ANONYMOUS|MAP_FIXED_NOREPLACE, -1, 0)
        movabsq $WORK, %rdi
        movl    $WORK_SIZE, %esi
        movl    $3, %edx
        movl    $0x100022, %r10d
        movq    $-1, %r8
        xorl    %r9d, %r9d
        movl    $9, %eax
        syscall
        testq   %rax, %rax
        js      no_work
        movabsq $WORK, %rbp
        movabsq $OUT, %rax
        movq    %rax, FREE(%rbp)

        # The mappings: mmap(address, size, protection, MAP_SHARED|MAP_FIXED_NOREPLACE, 3, offset)
        callq   receive
        movabsq $IN+16, %r12
        movl    $FIRST_MAPPING, %ebx
next_mapping:
        cmpq    END(%rbp), %r12
        jae     mapped
        movq    (%r12), %rdi
        movq    8(%r12), %rsi
        movq    16(%r12), %rdx
        movl    $0x100001, %r10d
        movl    $3, %r8d
        movq    24(%r12), %r9
        movl    $9, %eax
        callq   system
        movq    $-17, %rcx              # EEXIST
        cmpq    %rdi, %rax              # an old kernel takes the address for a hint
        cmovneq %rcx, %rax
        jne     fail
        addq    $32, %r12
        incl    %ebx
        jmp     next_mapping
mapped:
        movl    $3, %edi                # close(3)
        movl    $3, %eax
        syscall

        # sigaltstack({STACK, 0, STACK_SIZE}, NULL)
        movl    $STEP_STACK, %ebx
        pushq   $STACK_SIZE
        pushq   $0
        movabsq $STACK, %rax
        pushq   %rax
        movq    %rsp, %rdi
        xorl    %esi, %esi
        movl    $131, %eax
        callq   system

        # rt_sigaction(signal, {handle, SA_SIGINFO|SA_ONSTACK|SA_RESTORER, restore, all}, NULL, 8)
        movl    $STEP_SIGNALS, %ebx
        pushq   $-1
        leaq    restore(%rip), %rax
        pushq   %rax
        pushq   $0x0c000004
        leaq    handle(%rip), %rax
        pushq   %rax
        leaq    signals(%rip), %r12
next_signal:
        movzbl  (%r12), %edi
        testl   %edi, %edi
        je      signals_done
        movq    %rsp, %rsi
        xorl    %edx, %edx
        movl    $8, %r10d
        movl    $13, %eax
        callq   system
        incq    %r12
        jmp     next_signal
signals_done:

        # arch_prctl(ARCH_SET_FS, ...), arch_prctl(ARCH_SET_GS, ...)
        movl    $STEP_BASES, %ebx
        movabsq $IN, %r12
        movl    $0x1002, %edi
        movq    (%r12), %rsi
        movl    $158, %eax
        callq   system
        movl    $0x1001, %edi
        movq    8(%r12), %rsi
        movl    $158, %eax
        callq   system

        # prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)
        movl    $STEP_SECCOMP, %ebx
        movl    $22, %edi
        movl    $1, %esi
        movl    $157, %eax
        callq   system

        xorl    %ebx, %ebx
        xorl    %eax, %eax
        callq   report
        int3                            # the rest happens in the handler

# The system call %eax; reports %ebx and the error, and exits, if it fails
system:
        syscall
        testq   %rax, %rax
        js      fail
        retq
fail:
        callq   report
        jmp     exit

# Answers { %ebx, -%rax }
report:
        movq    FREE(%rbp), %rdi
        movq    %rbx, (%rdi)
        negq    %rax
        movq    %rax, 8(%rdi)
        addq    $16, FREE(%rbp)
        jmp     flush

no_work:
        movl    $1, %edi
        jmp     leave
exit:
        xorl    %edi, %edi
leave:
        movl    $60, %eax
        syscall

restore:
        movl    $15, %eax
        syscall

# handle(%edi signal, %rsi siginfo, %rdx ucontext)
handle:
        pushq   $2
        popfq                           # the program may have set the alignment-check flag
        movabsq $WORK, %rbp
        leaq    GREGS(%rdx), %r12
        movq    STEP(%rbp), %r13
        testq   %r13, %r13
        je      next_message

        movl    %edi, %ebx
        movq    FREE(%rbp), %rdi
        movq    %r12, %rsi
        movl    $GREGS_SAVED, %ecx
        rep     movsq
        movq    %rbx, (%rdi)
        addq    $8, %rdi

        # The ranges
        movq    16(%r13), %r14
        addq    $24, %r13
next_range:
        testq   %r14, %r14
        je      ranges_done
        movq    (%r13), %rsi
        movq    8(%r13), %rcx
        rep     movsb
        addq    $7, %rdi
        andq    $-8, %rdi
        addq    $16, %r13
        decq    %r14
        jmp     next_range
ranges_done:
        movq    %rdi, FREE(%rbp)
        movabsq $OUT_HIGH, %rax
        cmpq    %rax, %rdi
        jb      recorded
        callq   flush
recorded:
        cmpl    $5, %ebx                # SIGTRAP ...
        jne     message_done
        cmpq    $1, TRAPNO(%r12)        # ... of the trap flag
        jne     message_done
        cmpq    END(%rbp), %r13
        jae     message_done
        movq    RIP(%r12), %rax
        cmpq    %rax, (%r13)
        je      go

message_done:
        callq   flush
next_message:
        callq   receive
        movabsq $IN, %rsi
        movq    %r12, %rdi
        movl    $GREGS_SET, %ecx
        rep     movsq
        movq    %rsi, %r13
go:
        movq    %r13, STEP(%rbp)
        movq    8(%r13), %rax
        orq     $TRAP_FLAG, %rax
        movq    %rax, EFLAGS(%r12)
        retq                            # to restore, and from there into the program

# The next message into IN; its end to END. No more messages: exits
receive:
        subq    $8, %rsp
        movq    %rsp, %rsi
        movl    $8, %edx
        callq   read
        popq    %rdx
        movabsq $IN, %rsi
        movq    %rsi, %rax
        addq    %rdx, %rax
        movq    %rax, END(%rbp)

# %rdx bytes of standard input to %rsi
read:
        testq   %rdx, %rdx
        je      read_done
        xorl    %edi, %edi
        xorl    %eax, %eax
        syscall
        testq   %rax, %rax
        jle     exit
        addq    %rax, %rsi
        subq    %rax, %rdx
        jmp     read
read_done:
        retq

# Writes OUT to FREE to standard output
flush:
        movabsq $OUT, %rsi
flush_next:
        movq    FREE(%rbp), %rdx
        subq    %rsi, %rdx
        je      flushed
        movl    $1, %edi
        movl    $1, %eax
        syscall
        testq   %rax, %rax
        jle     exit
        addq    %rax, %rsi
        jmp     flush_next
flushed:
        movabsq $OUT, %rax
        movq    %rax, FREE(%rbp)
        retq

signals:                                # TRAP FPE SEGV BUS ILL
        .byte   5, 8, 11, 7, 4, 0
