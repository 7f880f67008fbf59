# The trampoline that saves every register.
#
# A template: each user of a site gets a copy with the address of its ftrace_ops filled in (ftrace/trampoline.ts),
# so nothing in it may depend on where it lies. Contract: at entry the return address into the traced function is
# on top of the stack, the traced function's own below it. The handler gets ip and parent ip, its ops, and the
# registers as they were before the site, any of which it may change but sp; regs->ip is where execution goes on.

.include "macros.inc"

# From rsp, once everything is in place: pt_regs, two frame records, the flags, the two return addresses.
.set RECORD_OF_TRAMPOLINE, PT_REGS_SIZE
.set RECORD_OF_TRACED, PT_REGS_SIZE + 16
.set SAVED_FLAGS, PT_REGS_SIZE + 32
.set RETURN_TO_TRACED, PT_REGS_SIZE + 40
.set RETURN_TO_PARENT, PT_REGS_SIZE + 48

.text

# A handler that lets the call go on as it is.
untraced ftrace_stub
	ret
done ftrace_stub

untraced ftrace_regs_caller
	pushfq					# before any instruction that changes them
	push 16(%rsp)				# frame record of the traced function: the parent's return address
	push %rbp				#   and rbp, as if it had begun its frame
	mov %rsp, %rbp
	push 24(%rsp)				# frame record of this trampoline: the return into the traced function
	push %rbp
	mov %rsp, %rbp
	sub $PT_REGS_SIZE, %rsp

	mov %r15, PT_REGS_R15(%rsp)
	mov %r14, PT_REGS_R14(%rsp)
	mov %r13, PT_REGS_R13(%rsp)
	mov %r12, PT_REGS_R12(%rsp)
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
	movq $-1, PT_REGS_ORIG_AX(%rsp)		# no system call
	mov RECORD_OF_TRACED(%rsp), %rax
	mov %rax, PT_REGS_BP(%rsp)
	mov SAVED_FLAGS(%rsp), %rax
	mov %rax, PT_REGS_FLAGS(%rsp)
	lea RETURN_TO_PARENT(%rsp), %rax
	mov %rax, PT_REGS_SP(%rsp)
	movq $KERNEL_CS, PT_REGS_CS(%rsp)
	movq $KERNEL_DS, PT_REGS_SS(%rsp)

	mov RETURN_TO_TRACED(%rsp), %rdi
	mov %rdi, PT_REGS_IP(%rsp)
	sub $FTRACE_SITE_SIZE, %rdi		# ip: the site itself
	mov RETURN_TO_PARENT(%rsp), %rsi	# parent ip
	.globl ftrace_regs_caller_ops
ftrace_regs_caller_ops:				# the copy's ftrace_ops go into this instruction
	movabs $0, %rdx
	mov %rsp, %rcx
	cld					# the ABI's promise to the handler
	call *FTRACE_OPS_FUNC(%rdx)

	mov PT_REGS_IP(%rsp), %rax		# where the handler sends us
	mov %rax, RETURN_TO_TRACED(%rsp)
	mov PT_REGS_FLAGS(%rsp), %rax
	mov %rax, SAVED_FLAGS(%rsp)
	mov PT_REGS_R15(%rsp), %r15
	mov PT_REGS_R14(%rsp), %r14
	mov PT_REGS_R13(%rsp), %r13
	mov PT_REGS_R12(%rsp), %r12
	mov PT_REGS_BX(%rsp), %rbx
	mov PT_REGS_R11(%rsp), %r11
	mov PT_REGS_R10(%rsp), %r10
	mov PT_REGS_R9(%rsp), %r9
	mov PT_REGS_R8(%rsp), %r8
	mov PT_REGS_AX(%rsp), %rax
	mov PT_REGS_CX(%rsp), %rcx
	mov PT_REGS_DX(%rsp), %rdx
	mov PT_REGS_SI(%rsp), %rsi
	mov PT_REGS_DI(%rsp), %rdi
	mov PT_REGS_BP(%rsp), %rbp
	add $SAVED_FLAGS, %rsp
	popfq
	ret
done ftrace_regs_caller
