# From one task to another, and where tasks begin (kernel/sched.c says which comes next).

.include "macros.inc"

.text

# void switch_to(struct task *prev, struct task *next): returns on next's stack. What it leaves on prev's, from
# its sp on, is a struct inactive_task_frame.
untraced switch_to
	push %rbp
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	unwind_hint_save
	mov %rsp, TASK_SP(%rdi)
	mov TASK_SP(%rsi), %rsp
	unwind_hint_restore
	mov %rsi, %gs:CPU_CURRENT
	mov TASK_STACK(%rsi), %rax		# from user mode the CPU comes to the beginning of the task's stack
	add $STACK_SIZE, %rax
	mov %rax, %gs:CPU_STACK_TOP
	mov %gs:CPU_TSS, %rdx
	mov %rax, TSS_RSP0(%rdx)
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	pop %rbp
	ret
done switch_to

# Where a user task begins: its first switch_to "returns" here, to registers that lie at the beginning of its stack.
# Interrupts are off, as everywhere in a switch.
untraced ret_from_fork
	unwind_hint_regs
	call schedule_tail
	mov %rsp, %rdi
	call exit_to_user_mode
	jmp return_by_iret
done ret_from_fork

# Where a task of the kernel's begins, with its function in rbx and that one's argument in r12.
untraced ret_from_kthread
	unwind_hint_end_of_stack
	call schedule_tail
	sti
	mov %r12, %rdi
	call *%rbx
	vmcall					# a function that returns is at its end
	ud2
done ret_from_kthread
