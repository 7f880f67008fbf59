# A function that is called through its site while that is being rewritten, who calls it, and who is called there
# (src/poke.ts, which links this into the kernel). What is done is counted, for each CPU, where no other CPU looks.

.include "macros.inc"

.text

# Calls poked() as often as rdi says; returns what the last call did. The return address is where the hardware's frame of a
# breakpoint at the site ends, as may be in a kernel, whose stack is aligned to words: no gap between is there by chance.
untraced poked_caller
	push %rbx
	push %rbx
	mov %rdi, %rbx
1:	mov %rbx, %rdi
	call poked
	.globl poked_returned
poked_returned:
	dec %rbx
	jnz 1b
	pop %rbx
	pop %rbx
	ret
done poked_caller

# Returns its argument doubled.
traced poked
	mov %gs:CPU_NUMBER, %eax
	incq poked_bodies(,%rax,8)
	lea (%rdi,%rdi), %rax
	ret
done poked

# The handler of an ops that is called there: (ip, parent ip, ops, regs)
untraced poked_handler
	mov %gs:CPU_NUMBER, %eax
	incq poked_handled(,%rax,8)
	ret
done poked_handler

.data
	.balign 64
	.globl poked_bodies
poked_bodies:
	.skip 8 * MAX_CPUS
	.globl poked_handled
poked_handled:
	.skip 8 * MAX_CPUS
