# A trampoline that keeps its contract, register by register and in the order in which one would explain it.
#
# Run: fentrylab check-trampoline --regs asm/trampolines/good.S
#
# Contract: that of ftrace_regs_caller (asm/ftrace.S). On top of the stack is the return address into the traced function,
# below it the traced function's own. The stack is, from rsp up, while the handler runs:
#
#	pt_regs		what the handler sees and may change
#	INNER		frame record of this trampoline: where OUTER is, and the return address into the traced function
#	OUTER		frame record of the traced function: rbp, and the return address into its caller
#	a word		for alignment
#	RETURN		into the traced function, or to where the handler sends us
#	PARENT		into the traced function's caller
#
# Walks by frame pointers go up the stack: the outer record lies above the inner one.

.include "macros.inc"

.set INNER, PT_REGS_SIZE
.set OUTER, PT_REGS_SIZE + 16
.set RETURN, PT_REGS_SIZE + 40
.set PARENT, PT_REGS_SIZE + 48

.text

untraced trampoline
	lea -RETURN(%rsp), %rsp			# not sub, which would change the flags
	mov %r15, PT_REGS_R15(%rsp)
	mov %r14, PT_REGS_R14(%rsp)
	mov %r13, PT_REGS_R13(%rsp)
	mov %r12, PT_REGS_R12(%rsp)
	mov %rbp, PT_REGS_BP(%rsp)
	mov %rbx, PT_REGS_BX(%rsp)
	mov %r11, PT_REGS_R11(%rsp)
	mov %r10, PT_REGS_R10(%rsp)
	mov %r9, PT_REGS_R9(%rsp)
	mov %r8, PT_REGS_R8(%rsp)
	mov %rax, PT_REGS_AX(%rsp)
	mov %rcx, PT_REGS_CX(%rsp)
	mov %rdx, PT_REGS_DX(%rsp)
	mov %rsi, PT_REGS_SI(%rsp)
	mov %rdi, PT_REGS_DI(%rsp)
	movq $0, PT_REGS_ORIG_AX(%rsp)
	movq $KERNEL_CS, PT_REGS_CS(%rsp)
	movq $KERNEL_DS, PT_REGS_SS(%rsp)
	pushfq					# as they were: nothing before has changed any
	pop PT_REGS_FLAGS(%rsp)
	lea PARENT(%rsp), %rax			# sp before the site
	mov %rax, PT_REGS_SP(%rsp)
	mov RETURN(%rsp), %rdi
	mov %rdi, PT_REGS_IP(%rsp)
	mov PARENT(%rsp), %rsi			# parent ip
	mov %rsi, OUTER + 8(%rsp)
	mov %rbp, OUTER(%rsp)
	mov %rdi, INNER + 8(%rsp)
	lea OUTER(%rsp), %rax
	mov %rax, INNER(%rsp)
	lea INNER(%rsp), %rbp			# both records are whole
	sub $FTRACE_SITE_SIZE, %rdi		# ip: the site itself
	lea trampoline_ops(%rip), %rdx
	mov %rsp, %rcx
	cld					# the ABI's promise to the handler
	call trampoline_handler
	mov PT_REGS_IP(%rsp), %rax		# where the handler sends us
	mov %rax, RETURN(%rsp)
	push PT_REGS_FLAGS(%rsp)
	popfq					# nothing behind this changes any
	mov PT_REGS_DI(%rsp), %rdi
	mov PT_REGS_SI(%rsp), %rsi
	mov PT_REGS_DX(%rsp), %rdx
	mov PT_REGS_CX(%rsp), %rcx
	mov PT_REGS_AX(%rsp), %rax
	mov PT_REGS_R8(%rsp), %r8
	mov PT_REGS_R9(%rsp), %r9
	mov PT_REGS_R10(%rsp), %r10
	mov PT_REGS_R11(%rsp), %r11
	mov PT_REGS_BX(%rsp), %rbx
	mov PT_REGS_BP(%rsp), %rbp
	mov PT_REGS_R12(%rsp), %r12
	mov PT_REGS_R13(%rsp), %r13
	mov PT_REGS_R14(%rsp), %r14
	mov PT_REGS_R15(%rsp), %r15
	lea RETURN(%rsp), %rsp
	ret
done trampoline
