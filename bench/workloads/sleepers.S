# Threads that sleep in the kernel for good, some calls deep, and a function that none of them is in: what a transition
# finds that can switch every task by its stack. Sources are of the kernel's own: .include "macros.inc".

.include "macros.inc"

.text

# void sleeper(void *unused): a thread's function.
traced sleeper
	frame_begin
1:	call serve
	jmp 1b
done sleeper

traced serve
	frame_begin
	call wait_for_request
	mov %rax, %rdi
	call answer
	frame_end
	ret
done serve

traced wait_for_request
	frame_begin
	mov %gs:0, %rax
	movl $TASK_INTERRUPTIBLE, TASK_STATE(%rax)
	call schedule
	xor %eax, %eax
	frame_end
	ret
done wait_for_request

# long answer(long request), and what takes its place.
traced answer
	lea 1(%rdi), %rax
	ret
done answer

untraced answer_new
	lea 2(%rdi), %rax
	ret
done answer_new
