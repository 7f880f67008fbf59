# Where the CPU enters the kernel: exceptions, interrupts, NMI. And where the laboratory does.

.include "macros.inc"

# The rest of a pt_regs below the hardware's frame, the error code, and a vector in rdi's place, which goes to rdi.
.macro save_regs
	xchg %rdi, (%rsp)
	push %rsi
	push %rdx
	push %rcx
	push %rax
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
	cld					# the ABI's promise to all that is called
.endm

.macro restore_regs
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
	add $8, %rsp				# the error code
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
exception asm_exc_int3, 3
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

interrupt asm_sysvec_apic_timer_interrupt, TIMER_VECTOR

untraced exception_common
	unwind_hint_iret_regs 16
	save_regs
	mov %edi, %esi				# the vector
	mov %rsp, %rdi				# the registers
	call exception_handler
	jmp return_from_exception
done exception_common

# On the CPU's interrupt stack. Handlers run with interrupts off, so that it is never in use already.
untraced interrupt_common
	unwind_hint_iret_regs 16
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

# Preempts what was interrupted, if it may be and somebody is waiting.
untraced return_from_exception
	unwind_hint_regs
	testl $X86_EFLAGS_IF, PT_REGS_FLAGS(%rsp)
	jz 1f
	cmpl $0, %gs:CPU_PREEMPT_COUNT
	jne 1f
	cmpl $0, %gs:CPU_NEED_RESCHED
	je 1f
	call schedule
1:	restore_regs
	iretq
done return_from_exception

# On a stack of its own: anything may have been interrupted, a switch of stacks included.
untraced asm_exc_nmi
	unwind_hint_iret_regs 0
	push $-1
	push $NMI_VECTOR
	save_regs
	mov %rsp, %rdi
	call nmi_handler
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

# void interrupt_handler(struct pt_regs *regs, unsigned vector)
untraced interrupt_handler
	frame_begin
	cmp $TIMER_VECTOR, %esi
	jne 1f
	call timer_tick
1:	frame_end
	ret
done interrupt_handler

# void timer_tick(struct pt_regs *regs): asks for a switch where another task is to run
traced timer_tick
	incq %gs:CPU_TICKS
	cmpq $0, %gs:CPU_NEXT
	je 1f
	movl $1, %gs:CPU_NEED_RESCHED
1:	ret
done timer_tick

# void nmi_handler(struct pt_regs *regs)
untraced nmi_handler
	incq %gs:CPU_NMIS
	ret
done nmi_handler

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

# void do_exit(long code): ends what lab_call called, from wherever that has got to, with the code for its result. It does
# not return: what lies behind a call of it is reached some other way, or is another function's.
untraced do_exit
	mov %rdi, %rax
	mov %gs:CPU_CURRENT, %rdx
	mov TASK_STACK(%rdx), %rdx
	lea STACK_SIZE(%rdx), %rsp
	unwind_hint_end_of_stack
	xor %ebp, %ebp
	jmp lab_call_return
done do_exit

# Sites call this in the files only: they become NOPs before anything runs.
untraced __fentry__
	ret
done __fentry__
