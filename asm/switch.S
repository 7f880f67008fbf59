# From one task to another.

.include "macros.inc"

.text

# void schedule(void): to the task that is to run next on this CPU, if there is one. Who that is, is policy,
# which the laboratory sets.
untraced schedule
	frame_begin
	pushfq
	cli					# nobody may see a CPU between two tasks
	movl $0, %gs:CPU_NEED_RESCHED
	mov %gs:CPU_NEXT, %rsi
	movq $0, %gs:CPU_NEXT
	test %rsi, %rsi
	jz 1f
	mov %gs:CPU_CURRENT, %rdi
	call switch_to
1:	popfq
	frame_end
	ret
done schedule

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
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	pop %rbp
	ret
done switch_to

# Where a task begins: its first switch_to "returns" here, with its function in rbx and that one's argument in
# r12. Interrupts are off, as everywhere in a switch.
untraced ret_from_fork
	unwind_hint_end_of_stack
	sti
	mov %r12, %rdi
	call *%rbx
	vmcall					# a function that returns is at its end
	ud2
done ret_from_fork

# void cpu_idle(void): waits for somebody to run
traced cpu_idle
	frame_begin
1:	sti
	hlt
	call schedule
	jmp 1b
done cpu_idle
