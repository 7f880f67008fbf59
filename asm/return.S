# Handlers and trampolines for whoever wants to know when a traced function returns: the return address is replaced on
# the stack, and kept in the task's ret_stack.

.include "macros.inc"

.text

# rdi ip, rsi parent ip, rdx ftrace_ops, rcx pt_regs: makes the traced function return to the trampoline that
# ops->private names. A call that finds ret_stack full is not followed.
untraced return_hook_handler
	frame_begin
	mov FTRACE_OPS_PRIVATE(%rdx), %rdx
	mov %gs:CPU_CURRENT, %r8
	mov TASK_RET_DEPTH(%r8), %eax
	cmp $MAX_RET_DEPTH, %eax
	jae 1f
	shl $4, %rax				# RET_STACK_SIZE
	add TASK_RET_STACK(%r8), %rax
	mov PT_REGS_SP(%rcx), %r9		# where the return address lies
	mov %rsi, RET_STACK_RET(%rax)
	mov %r9, RET_STACK_SLOT(%rax)
	incl TASK_RET_DEPTH(%r8)		# the entry is whole before it counts; until it does,
	mov %rsi, RET_STACK_RET(%rax)		# an interrupt may have used it for a call of its own
	mov %r9, RET_STACK_SLOT(%rax)
	mov %rdx, (%r9)				# not before the entry counts
1:	frame_end
	ret
done return_hook_handler

# As function-graph tracing has it: the caller's address is nowhere on the stack, and walkers are told so.
untraced return_to_handler
	unwind_hint_undefined
	sub $24, %rsp				# the return address, and what a function returns in
	mov %rax, (%rsp)
	mov %rdx, 8(%rsp)
	mov %gs:CPU_CURRENT, %rax
	mov TASK_RET_DEPTH(%rax), %edx
	dec %edx
	shl $4, %rdx
	add TASK_RET_STACK(%rax), %rdx
	mov RET_STACK_RET(%rdx), %rdx
	decl TASK_RET_DEPTH(%rax)		# not before: an interrupt may use the entry for a call of its own
	mov %rdx, 16(%rsp)
	pop %rax
	pop %rdx
	ret
done return_to_handler

# As kretprobes have it: the trampoline's own address stands where the caller's was, so that walkers find the slot
# in ret_stack, until the entry is taken.
untraced rethook_trampoline
	unwind_hint_undefined
	push $rethook_trampoline
	unwind_hint_func
	frame_begin
	push %rax
	push %rdx
	pushfq
	mov %gs:CPU_CURRENT, %rax
	mov TASK_RET_DEPTH(%rax), %edx
	dec %edx
	shl $4, %rdx
	add TASK_RET_STACK(%rax), %rdx
	mov RET_STACK_RET(%rdx), %rdx
	mov %rdx, 8(%rbp)			# the caller's address is back in its place before its entry goes
	decl TASK_RET_DEPTH(%rax)
	popfq
	pop %rdx
	pop %rax
	frame_end
	ret
done rethook_trampoline
