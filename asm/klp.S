# The redirect handler: which body of a patched function does this task get?

.include "macros.inc"

.text

# rdi ip, rsi parent ip, rdx ftrace_ops, rcx pt_regs. ops->private is the function's klp_func.
# Outside a transition everybody gets the replacement; within one, the tasks that have been switched do.
untraced klp_redirect_handler
	frame_begin
	mov FTRACE_OPS_PRIVATE(%rdx), %rax
	cmpb $0, KLP_FUNC_TRANSITION(%rax)
	je 1f
	# The transition flag is read before the task's state. Pairs with whoever starts a transition, who
	# writes every task's state before the flag.
	mov %gs:CPU_CURRENT, %rdx
	cmpl $KLP_PATCHED, TASK_PATCH_STATE(%rdx)
	jne 2f					# regs->ip stays: the original, just behind its site
1:	mov KLP_FUNC_NEW_FUNC(%rax), %rax
	mov %rax, PT_REGS_IP(%rcx)
2:	frame_end
	ret
done klp_redirect_handler
