# Where the CPU enters the kernel: system calls, exceptions, interrupts, NMI; and how it leaves. And where the
# laboratory does both.
#
# In the kernel, gs has the CPU's data: every way in from user mode swaps it, every way back swaps it again.

.include "macros.inc"

# A pt_regs from r8 on down, with what it tells walkers.
.macro push_from_r8
	push %r8
	push %r9
	push %r10
	push %r11
	push %rbx
	push %rbp
	push %r12
	push %r13
	push %r14
	push %r15
	unwind_hint_regs
	lea 1(%rsp), %rbp			# for frame-pointer walks: here are registers, not a frame
.endm

# The rest of a pt_regs below the hardware's frame, the error code, and a vector in rdi's place, which goes to rdi.
.macro save_regs
	xchg %rdi, (%rsp)
	push %rsi
	push %rdx
	push %rcx
	push %rax
	push_from_r8
	cld					# the ABI's promise to all that is called
.endm

.macro pop_regs
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbp
	pop %rbx
	pop %r11
	pop %r10
	pop %r9
	pop %r8
	pop %rax
	pop %rcx
	pop %rdx
	pop %rsi
	pop %rdi
.endm

.macro restore_regs
	pop_regs
	add $8, %rsp				# the error code
.endm

# `cs` bytes from rsp is the saved code segment: its low bits are the privilege level that was interrupted.
.macro swapgs_if_user cs
	testb $3, \cs(%rsp)
	jz .Lkernel\@
	swapgs
.Lkernel\@:
.endm

# An exception whose error code the hardware pushes; one that has none gets -1, which is no system call's number either.
.macro exception_with_error_code name, vector
untraced \name
	unwind_hint_iret_regs 8
	push $\vector
	jmp exception_common
done \name
.endm

.macro exception name, vector
untraced \name
	unwind_hint_iret_regs 0
	push $-1
	push $\vector
	jmp exception_common
done \name
.endm

.macro interrupt name, vector
untraced \name
	unwind_hint_iret_regs 0
	push $-1
	push $\vector
	jmp interrupt_common
done \name
.endm

.text

exception asm_exc_divide_error, 0
exception asm_exc_debug, 1
exception asm_exc_overflow, 4
exception asm_exc_bounds, 5
exception asm_exc_invalid_op, 6
exception asm_exc_device_not_available, 7
exception_with_error_code asm_exc_double_fault, 8	# on a stack of its own
exception_with_error_code asm_exc_invalid_tss, 10
exception_with_error_code asm_exc_segment_not_present, 11
exception_with_error_code asm_exc_stack_segment, 12
exception_with_error_code asm_exc_general_protection, 13
exception_with_error_code asm_exc_page_fault, 14

# A breakpoint in the kernel may lie where a call is being written: its handler pushes the return address for it. So the
# hardware's frame, and the word that every exception pushes, move down by as much as they are; what was interrupted goes on
# by the copy. (One word would do; the copy must not overlap what it is made of.)
untraced asm_exc_int3
	unwind_hint_iret_regs 0
	push $-1
	testb $3, 16(%rsp)
	jnz 1f
.rept 5
	push INT3_GAP - 8(%rsp)
.endr
	unwind_hint_iret_regs 0			# from here on by the copy
	push INT3_GAP - 8(%rsp)
1:	push $3
	jmp exception_common
done asm_exc_int3

interrupt asm_common_interrupt, DEVICE_VECTOR
interrupt asm_sysvec_apic_timer_interrupt, TIMER_VECTOR
interrupt asm_sysvec_call_function, CALL_FUNCTION_VECTOR
interrupt asm_sysvec_reschedule_ipi, RESCHEDULE_VECTOR

untraced exception_common
	unwind_hint_iret_regs 16
	swapgs_if_user 24
	save_regs
	mov %edi, %esi				# the vector
	mov %rsp, %rdi				# the registers
	call do_exception
	jmp return_from_exception
done exception_common

# On the CPU's interrupt stack. Handlers run with interrupts off, so that it is never in use already.
untraced interrupt_common
	unwind_hint_iret_regs 16
	swapgs_if_user 24
	save_regs
	mov %edi, %esi
	mov %rsp, %rdi
	mov %gs:CPU_IRQ_STACK, %rbx		# the interrupted stack's pointer is kept in its topmost word
	mov %rsp, (%rbx)
	mov %rbx, %rsp
	unwind_hint_regs_indirect
	call interrupt_handler
	pop %rsp
	unwind_hint_regs
	jmp return_from_exception
done interrupt_common

# To user mode, or back to kernel code, which is preempted if it may be and somebody is waiting.
untraced return_from_exception
	unwind_hint_regs
	testb $3, PT_REGS_CS(%rsp)
	jnz return_to_user
	testl $X86_EFLAGS_IF, PT_REGS_FLAGS(%rsp)
	jz 1f
	cmpl $0, %gs:CPU_PREEMPT_COUNT
	jne 1f
	mov %gs:CPU_CURRENT, %rax
	testl $TIF_NEED_RESCHED, TASK_THREAD_FLAGS(%rax)
	jz 1f
	call preempt_schedule_irq
1:	restore_regs
	iretq
done return_from_exception

untraced return_to_user
	unwind_hint_regs
	mov %rsp, %rdi
	call exit_to_user_mode			# whatever is to be done on the way out
	jmp return_by_iret
done return_to_user

untraced return_by_iret
	unwind_hint_regs
	restore_regs
	swapgs
	iretq
done return_by_iret

# System calls: the CPU leaves ip in rcx and flags in r11, turns interrupts off, and stays on the user's stack. Of
# that nothing is used: until the task's stack is there, and on the way back behind it, nobody can walk.
untraced entry_SYSCALL_64
	unwind_hint_undefined
	swapgs
	mov %rsp, %gs:CPU_USER_SP
	mov %gs:CPU_STACK_TOP, %rsp
	.globl entry_SYSCALL_64_on_stack
entry_SYSCALL_64_on_stack:
	push $USER_DS
	push %gs:CPU_USER_SP
	push %r11
	push $USER_CS
	push %rcx
	unwind_hint_iret_regs 0
	push %rax				# orig_ax: the call's number
	push %rdi
	push %rsi
	push %rdx
	push %rcx
	push $-ENOSYS				# ax
	push_from_r8
	mov %rsp, %rdi
	mov %rax, %rsi
	call do_syscall_64
	test %eax, %eax
	jz return_by_iret
	pop_regs				# and to the user's stack by hand
	mov PT_REGS_SP - PT_REGS_ORIG_AX(%rsp), %rsp
	.globl entry_SYSCALL_64_off_stack
entry_SYSCALL_64_off_stack:
	unwind_hint_undefined
	swapgs
	sysretq
done entry_SYSCALL_64

# On a stack of its own: anything may have been interrupted, a switch of stacks included, or the first instructions of a
# system call, where gs and rsp are still the user's.
#
# NMIs are blocked until the next iretq, whoever executes it: so a handler that meets a breakpoint can be interrupted by
# another NMI, whose frame the hardware writes to where the first one's was, at the stack's very end. So each NMI copies
# its frame before anything else can happen: NMI_COPY bytes down; or, where an NMI was interrupted, below that one's rsp.
untraced asm_exc_nmi
	unwind_hint_iret_regs 0
	push %rax
	push %rdx
	unwind_hint_iret_regs 16
	lea 56 - NMI_COPY(%rsp), %rdx		# the end of the copy: 40 + 16 bytes were pushed
	testb $3, 24(%rsp)
	jnz 2f
	mov 40(%rsp), %rax			# the interrupted rsp: in this stack?
	xor %rsp, %rax
	test $-STACK_SIZE, %rax
	jnz 2f
	mov 16(%rsp), %rax			# not if a user has made it look so
	cmp $entry_SYSCALL_64, %rax
	jb 1f
	cmp $entry_SYSCALL_64_on_stack, %rax
	jb 2f
	cmp $entry_SYSCALL_64_off_stack, %rax
	jb 1f
	cmp $asm_exc_nmi, %rax
	jb 2f
1:	mov 40(%rsp), %rdx
	and $-16, %rdx
2:	mov 48(%rsp), %rax			# ss
	mov %rax, -8(%rdx)
	mov 40(%rsp), %rax			# sp
	mov %rax, -16(%rdx)
	mov 32(%rsp), %rax			# flags
	mov %rax, -24(%rdx)
	mov 24(%rsp), %rax			# cs
	mov %rax, -32(%rdx)
	mov 16(%rsp), %rax			# ip
	mov %rax, -40(%rdx)
	mov 8(%rsp), %rax			# and what was saved here
	mov %rax, -48(%rdx)
	mov (%rsp), %rax
	mov %rax, -56(%rdx)
	lea -56(%rdx), %rsp
	unwind_hint_iret_regs 16
	pop %rdx
	pop %rax
	push $-1
	push $NMI_VECTOR
	save_regs
	rdgsbase %rbx				# whichever it is, it is put back
	rdpid %rax
	mov cpus(,%rax,8), %rax
	wrgsbase %rax
	call nmi_handler
	wrgsbase %rbx
	restore_regs
	iretq
done asm_exc_nmi

# void exception_handler(struct pt_regs *regs, unsigned vector): what it means is for the laboratory to say
untraced exception_handler
	frame_begin
	.globl exception_taken
exception_taken:
	vmcall
	frame_end
	ret
done exception_handler

# Calls the function in rax with its arguments in place, then tells the laboratory, result in rax.
# Every stack that it begins ends here: rbp is zero, which is how a frame-pointer walk knows.
untraced lab_call
	unwind_hint_end_of_stack
	xor %ebp, %ebp
	call *%rax
lab_call_return:
	vmcall
	ud2
done lab_call

# void lab_exit(long code): ends what lab_call called, from wherever that has got to, with the code for its result. It does
# not return: what lies behind a call of it is reached some other way, or is another function's.
untraced lab_exit
	mov %rdi, %rax
	mov %gs:CPU_CURRENT, %rdx
	mov TASK_STACK(%rdx), %rdx
	lea STACK_SIZE(%rdx), %rsp
	unwind_hint_end_of_stack
	xor %ebp, %ebp
	jmp lab_call_return
done lab_exit

# long hypercall(long number, long a, long b, long c): asks the laboratory, which answers in rax
untraced hypercall
	vmcall
	.globl hypercall_answered
hypercall_answered:
	ret
done hypercall

# A CPU begins here, on the stack of its idle task.
untraced start_cpu
	unwind_hint_end_of_stack
	xor %ebp, %ebp
	call cpu_idle
	ud2
done start_cpu

# Sites call this in the files only: they become NOPs before anything runs.
untraced __fentry__
	ret
done __fentry__
