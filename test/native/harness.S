# Runs machine-code cases on this processor, one signal each.
#
# Linux x86-64, raw system calls, no library. Started by oracle.ts with the case records as a file on
# standard input; the outcome records go to standard output (both layouts: records.ts). Exit status 0
# when every case ran; otherwise the number of the step of the preparation that failed (1 to 9).
#
# Every case ends in a signal: an int3 after its last byte (the whole code page is int3) or its own
# fault. The handler saves what the signal frame holds, compares the data window with its copy, puts
# the next case's bytes, memory and registers in place, and returns into it. A case that makes a
# system call kills the process (seccomp, strict mode); one that never ends is cut off by an alarm.

        .set    DATA, 0x10000000        # the two pages of the data window, nothing mapped around them
        .set    DATA_SIZE, 0x2000
        .set    CODE, 0x20000000        # the code page; cases start in its middle
        .set    CODE_SIZE, 0x1000
        .set    ENTRY, 0x20000800
        .set    STUB, 0x38000000        # where a case begins whose stack pointer is not canonical: it must not see that itself
        .set    STUB_SIZE, 0x1000
        .set    FILL, 0xa5              # what the window holds where a case says nothing

        .set    WORK, 0x30000000        # variables, then:
        .set    COPY, 0x30001000        #   what the window held when the case began
        .set    STACK, 0x30004000       #   the handler's stack
        .set    STACK_SIZE, 0x10000
        .set    OUT, 0x30020000         #   outcome records not yet written
        .set    OUT_HIGH, 0x30030000    #   write them when they reach here; one record is below 36 KiB
        .set    WORK_SIZE, 0x40000

        # Variables, from WORK (%rbp throughout the handler)
        .set    NEXT, 0                 # the next case record
        .set    END, 8                  # the end of the last one
        .set    FREE, 16                # the end of the outcome records in OUT
        .set    INDEX, 24               # the running case; -1 before the first
        .set    ALARMED, 32             # the case that ran when the last alarm came
        .set    PATCHES, 40             # the running case's memory patches
        .set    PATCH_COUNT, 48

        .set    GREGS, 40               # in struct ucontext: r8-r15 rdi rsi rbp rbx rdx rax rcx rsp rip eflags ...
        .set    GREG_RSP, 8*15
        .set    GREG_RIP, 8*16
        .set    GREGS_SAVED, 23         # ... csgsfs err trapno oldmask cr2
        .set    GREGS_SET, 18
        .set    RECORD_HEAD, 192        # the saved registers, the signal's number, the number of changed bytes

        .text
        .globl  _start
_start:
        # 1 to 3: the window, the code page and the stub's, the work area, exactly there or not at all
        movl    $DATA, %edi
        movl    $DATA_SIZE, %esi
        movl    $3, %edx
        movl    $1, %ebx
        callq   map
        movl    $CODE, %edi
        movl    $CODE_SIZE, %esi
        movl    $7, %edx
        movl    $2, %ebx
        callq   map
        movl    $STUB, %edi
        movl    $STUB_SIZE, %esi
        movl    $7, %edx
        movl    $2, %ebx
        callq   map
        movl    $WORK, %edi
        movl    $WORK_SIZE, %esi
        movl    $3, %edx
        movl    $3, %ebx
        callq   map

        movl    $DATA, %edi
        movl    $DATA_SIZE, %ecx
        movl    $FILL, %eax
        rep     stosb
        movl    $COPY, %edi
        movl    $DATA_SIZE, %ecx
        rep     stosb

        # 4: the case records: mmap(0, lseek(0, 0, SEEK_END), PROT_READ, MAP_PRIVATE, 0, 0)
        movl    $4, %ebx
        xorl    %edi, %edi
        xorl    %esi, %esi
        movl    $2, %edx
        movl    $8, %eax
        callq   system
        movl    $WORK, %ebp
        movq    %rax, END(%rbp)
        movq    %rax, %rsi
        xorl    %edi, %edi
        movl    $1, %edx
        movl    $2, %r10d
        xorl    %r8d, %r8d
        xorl    %r9d, %r9d
        movl    $9, %eax
        callq   system
        movq    %rax, NEXT(%rbp)
        addq    %rax, END(%rbp)
        movq    $OUT, FREE(%rbp)
        movq    $-1, INDEX(%rbp)
        movq    $-1, ALARMED(%rbp)

        # 5: sigaltstack({STACK, 0, STACK_SIZE}, NULL)
        movl    $5, %ebx
        pushq   $STACK_SIZE
        pushq   $0
        pushq   $STACK
        movq    %rsp, %rdi
        xorl    %esi, %esi
        movl    $131, %eax
        callq   system

        # 6: rt_sigaction(signal, {handle, SA_SIGINFO|SA_ONSTACK|SA_RESTORER, restore, all}, NULL, 8)
        movl    $6, %ebx
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

        # 7: the bases: arch_prctl(ARCH_SET_GS, DATA), arch_prctl(ARCH_SET_FS, DATA + 0x1000)
        movl    $7, %ebx
        movl    $0x1001, %edi
        movl    $DATA, %esi
        movl    $158, %eax
        callq   system
        movl    $0x1002, %edi
        movl    $DATA+0x1000, %esi
        movl    $158, %eax
        callq   system

        # 8: setitimer(ITIMER_VIRTUAL, {100 ms, 100 ms}, NULL): a case that meets two alarms hangs. Counts
        # only while cases run, so that a busy host makes no case hang
        movl    $8, %ebx
        pushq   $100000
        pushq   $0
        pushq   $100000
        pushq   $0
        movl    $1, %edi
        movq    %rsp, %rsi
        xorl    %edx, %edx
        movl    $38, %eax
        callq   system

        # 9: from here on only read, write, exit and sigreturn: prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)
        movl    $9, %ebx
        movl    $22, %edi
        movl    $1, %esi
        movl    $157, %eax
        callq   system

        int3                            # the first case is loaded in the handler, like every other

# map(%rdi address, %esi bytes, %edx protection): anonymous, private, MAP_FIXED_NOREPLACE
map:
        movl    $0x100022, %r10d
        movq    $-1, %r8
        xorl    %r9d, %r9d
        movl    $9, %eax
# The system call %eax; exits with status %ebx if it fails
system:
        syscall
        testq   %rax, %rax
        js      fail
        retq
fail:
        movl    %ebx, %edi
exit:
        movl    $60, %eax
        syscall

restore:
        movl    $15, %eax
        syscall

# handle(%edi signal, %rsi siginfo, %rdx ucontext)
handle:
        pushq   $2
        popfq                           # a case may have set the alignment-check flag
        movl    $WORK, %ebp
        leaq    GREGS(%rdx), %r12
        movq    INDEX(%rbp), %rax
        testq   %rax, %rax
        js      load
        cmpl    $26, %edi
        jne     record
        cmpq    ALARMED(%rbp), %rax
        je      record
        movq    %rax, ALARMED(%rbp)
        retq

record:
        movl    %edi, %ebx
        movq    FREE(%rbp), %r13
        movq    %r12, %rsi
        movq    %r13, %rdi
        movl    $GREGS_SAVED, %ecx
        rep     movsq
        movl    %ebx, (%rdi)
        leaq    RECORD_HEAD(%r13), %rdi

        # The window against its copy, eight bytes at a time; what differs is put back
        movl    $DATA, %esi
        movl    $COPY, %r8d
        xorl    %ecx, %ecx
compare:
        movq    (%rsi,%rcx), %rax
        movq    (%r8,%rcx), %rdx
        cmpq    %rdx, %rax
        jne     differs
same:
        addl    $8, %ecx
        cmpl    $DATA_SIZE, %ecx
        jb      compare
        jmp     compared
differs:
        movq    %rdx, (%rsi,%rcx)
        xorq    %rax, %rdx
        movl    %ecx, %r9d              # one byte's outcome is its offset * 256 + its value
        shll    $8, %r9d
        movl    $8, %r10d
differs_byte:
        testb   %dl, %dl
        je      same_byte
        movzbl  %al, %r11d
        orl     %r9d, %r11d
        movl    %r11d, (%rdi)
        addq    $4, %rdi
same_byte:
        shrq    $8, %rdx
        shrq    $8, %rax
        addl    $0x100, %r9d
        decl    %r10d
        jne     differs_byte
        jmp     same
compared:
        movq    %rdi, FREE(%rbp)
        movq    %rdi, %rax
        subq    %r13, %rax
        subq    $RECORD_HEAD, %rax
        shrq    $2, %rax
        movl    %eax, RECORD_HEAD-4(%r13)
        cmpq    $OUT_HIGH, %rdi
        jb      unpatch
        callq   flush

        # Take the case's memory out of the window and its copy
unpatch:
        movq    PATCHES(%rbp), %rsi
        movq    PATCH_COUNT(%rbp), %rcx
        movl    $FILL, %edx
unpatch_next:
        subq    $1, %rcx
        jb      load
        movl    (%rsi,%rcx,4), %eax
        shrl    $8, %eax
        movb    %dl, DATA(%rax)
        movb    %dl, COPY(%rax)
        jmp     unpatch_next

load:
        movq    NEXT(%rbp), %rsi
        cmpq    END(%rbp), %rsi
        jae     done
        incq    INDEX(%rbp)
        movl    $CODE, %edi
        movl    $0xcc, %eax
        movl    $CODE_SIZE, %ecx
        rep     stosb
        movl    (%rsi), %ebx            # bytes of code
        movl    4(%rsi), %r8d           # patches
        addq    $8, %rsi
        movq    %r12, %rdi
        movl    $GREGS_SET, %ecx
        rep     movsq
        movl    $ENTRY, %edi
        movl    %ebx, %ecx
        rep     movsb
        movq    %rsi, PATCHES(%rbp)
        movq    %r8, PATCH_COUNT(%rbp)
patch_next:
        subq    $1, %r8
        jb      patched
        lodsl
        movzbl  %al, %edx
        shrl    $8, %eax
        movb    %dl, DATA(%rax)
        movb    %dl, COPY(%rax)
        jmp     patch_next
patched:
        movq    %rsi, NEXT(%rbp)
        # Not every processor returns to a stack pointer that is not canonical: the case loads it itself
        movq    GREG_RSP(%r12), %rax
        movq    %rax, %rcx
        shlq    $16, %rcx
        sarq    $16, %rcx
        cmpq    %rax, %rcx
        je      ready
        movl    $STUB, %edi
        movw    $0xbc48, (%rdi)         # mov $..., %rsp
        movq    %rax, 2(%rdi)
        movb    $0xe9, 10(%rdi)         # jmp ENTRY
        movl    $ENTRY-STUB-15, 11(%rdi)
        movq    %rdi, GREG_RIP(%r12)
        movq    $STACK+STACK_SIZE, %rax
        movq    %rax, GREG_RSP(%r12)
ready:
        retq                            # to restore, and from there into the case

done:
        callq   flush
        xorl    %edi, %edi
        jmp     exit

# Writes OUT to FREE to standard output
flush:
        movl    $OUT, %esi
flush_next:
        movq    FREE(%rbp), %rdx
        subq    %rsi, %rdx
        je      flushed
        movl    $1, %edi
        movl    $1, %eax
        movl    $9, %ebx
        callq   system
        addq    %rax, %rsi
        jmp     flush_next
flushed:
        movq    $OUT, FREE(%rbp)
        retq

signals:                                # TRAP FPE SEGV BUS ILL VTALRM
        .byte   5, 8, 11, 7, 4, 26, 0
