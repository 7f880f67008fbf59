# The trampolines that call sites call.
#
# Templates: each user of a site gets a copy of one (src/ftrace/trampoline.ts), with the address of its ftrace_ops in the
# instruction at <name>_ops and the handler that is called at <name>_call; so nothing else in them may depend on where they lie.
# As they are, they are what sites call that several share: the list function finds out who they are.
#
# Contract: at entry the return address into the traced function is on top of the stack, the traced function's own below
# it. The handler gets ip and parent ip, its ops, and a pt_regs with the registers as they were before the site. Of those that
# are there it may change any but sp. ftrace_caller has the arguments, rax, rbp, sp and ip; ftrace_regs_caller has all.
# regs->ip is where execution goes on, but for ftrace_caller, which is for those that must not change it. Two frame records,
# the outer one above the inner, make the traced function and its caller visible to walks by frame pointers, as neither has
# one yet.

.include "macros.inc"

.text

# A handler that lets the call go on as it is.
untraced ftrace_stub
	ret
done ftrace_stub

# What a site calls directly that lets the call go on as it is: it returns into the traced function.
untraced direct_stub
	ret
done direct_stub

# Plain. The frame records are in fields that are not filled in: the traced function's is bp, with the parent's return
# address behind it, in bx's place; the trampoline's is below, in those of r13 and r12. Flags, r10 and r11 are nobody's at a
# function's beginning (System V ABI, 3.2.1 and 3.2.3).
.set PLAIN_RETURN, PT_REGS_SIZE + 8		# into the traced function: a word is left out, for alignment
.set PLAIN_PARENT, PT_REGS_SIZE + 16		# into its caller

.macro plain_trampoline name, ipmodify
untraced \name
	sub $PT_REGS_SIZE + 8, %rsp
	mov %rbp, PT_REGS_BP(%rsp)
	mov %rdi, PT_REGS_DI(%rsp)
	mov %rsi, PT_REGS_SI(%rsp)
	mov %rdx, PT_REGS_DX(%rsp)
	mov %rcx, PT_REGS_CX(%rsp)
	mov %r8, PT_REGS_R8(%rsp)
	mov %r9, PT_REGS_R9(%rsp)
	mov %rax, PT_REGS_AX(%rsp)		# how many vector registers a variadic function gets
	mov PLAIN_PARENT(%rsp), %rsi		# parent ip
	mov %rsi, PT_REGS_BX(%rsp)
	mov PLAIN_RETURN(%rsp), %rdi
	mov %rdi, PT_REGS_IP(%rsp)
	mov %rdi, PT_REGS_R12(%rsp)
	lea PT_REGS_BP(%rsp), %rcx
	mov %rcx, PT_REGS_R13(%rsp)
	lea PT_REGS_R13(%rsp), %rbp		# both records are whole
	lea PLAIN_PARENT(%rsp), %rcx
	mov %rcx, PT_REGS_SP(%rsp)
	sub $FTRACE_SITE_SIZE, %rdi		# ip: the site itself
	.globl \name\()_ops
\name\()_ops:
	movabs $0, %rdx
	mov %rsp, %rcx
	.globl \name\()_call
\name\()_call:
	call ftrace_ops_list_func
.if \ipmodify
	mov PT_REGS_IP(%rsp), %rax		# where the handler sends us
	mov %rax, PLAIN_RETURN(%rsp)
.endif
	mov PT_REGS_AX(%rsp), %rax
	mov PT_REGS_R9(%rsp), %r9
	mov PT_REGS_R8(%rsp), %r8
	mov PT_REGS_CX(%rsp), %rcx
	mov PT_REGS_DX(%rsp), %rdx
	mov PT_REGS_SI(%rsp), %rsi
	mov PT_REGS_DI(%rsp), %rdi
	mov PT_REGS_BP(%rsp), %rbp
	add $PT_REGS_SIZE + 8, %rsp
	ret
done \name
.endm

plain_trampoline ftrace_caller, 0
plain_trampoline ftrace_ipmodify_caller, 1

# With every register and the flags: pushed in the order of pt_regs, below the frame records and the word that a direct
# call's address goes to.
.set REGS_RECORD, PT_REGS_SIZE			# the trampoline's: where the traced function's is, and where that goes on
.set REGS_DIRECT, PT_REGS_SIZE + 32
.set REGS_RETURN, PT_REGS_SIZE + 40
.set REGS_PARENT, PT_REGS_SIZE + 48

untraced ftrace_regs_caller
	push %rbp				# a direct call's place
	push 16(%rsp)				# frame record of the traced function: the parent's return address
	push %rbp				#   and rbp, as if it had begun its frame
	push 24(%rsp)				# frame record of the trampoline: behind the site
	lea 8(%rsp), %rbp
	push %rbp				#   and where the other is: walks go up
	push $KERNEL_DS
	lea REGS_PARENT - PT_REGS_SS(%rsp), %rbp	# sp before the site
	push %rbp
	pushfq					# nothing before it has changed them
	push $KERNEL_CS
	push REGS_RECORD + 8 - PT_REGS_CS(%rsp)	# ip: behind the site
	push $0					# orig_ax: a direct ops puts its code's address here
	push %rdi
	push %rsi
	push %rdx
	push %rcx
	push %rax
	push %r8
	push %r9
	push %r10
	push %r11
	push %rbx
	push REGS_RECORD + 16 - PT_REGS_BX(%rsp)	# rbp
	push %r12
	push %r13
	push %r14
	push %r15
	lea REGS_RECORD(%rsp), %rbp		# both records are whole
	mov PT_REGS_IP(%rsp), %rdi
	sub $FTRACE_SITE_SIZE, %rdi		# ip: the site itself
	mov REGS_PARENT(%rsp), %rsi		# parent ip
	.globl ftrace_regs_caller_ops
ftrace_regs_caller_ops:
	movabs $0, %rdx
	mov %rsp, %rcx
	cld					# the ABI's promise to the handler
	.globl ftrace_regs_caller_call
ftrace_regs_caller_call:
	call ftrace_ops_list_func
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
	pop REGS_DIRECT - PT_REGS_IP(%rsp)	# orig_ax: where to go first
	pop REGS_RETURN - PT_REGS_CS(%rsp)	# ip: where the handler sends us
	cmpq $0, REGS_DIRECT - PT_REGS_CS(%rsp)
	lea 8(%rsp), %rsp			# cs
	jne 1f
	popfq
	lea REGS_RETURN - PT_REGS_SP(%rsp), %rsp
	ret
1:	popfq
	lea REGS_DIRECT - PT_REGS_SP(%rsp), %rsp
	unwind_hint_func 16			# it jumps: the frame is above where it goes
	ret
done ftrace_regs_caller
