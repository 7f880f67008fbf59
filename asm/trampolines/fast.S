# The same contract as good.S in fewer instructions and fewer bytes: pt_regs is pushed and popped in its own order, so that
# each register costs an instruction of one or two bytes, and constants need no register.
#
# Run: fentrylab check-trampoline --regs asm/trampolines/fast.S

.include "macros.inc"

.set INNER, PT_REGS_SIZE
.set RETURN, PT_REGS_SIZE + 40
.set PARENT, PT_REGS_SIZE + 48

.text

untraced trampoline
	push %rbp				# for alignment
	push 16(%rsp)				# frame record of the traced function: its caller's return address
	push %rbp				#   and rbp, as if it had begun its frame
	push 24(%rsp)				# frame record of the trampoline: behind the site
	lea 8(%rsp), %rbp
	push %rbp				#   and where the other record is
	push $KERNEL_DS
	lea PARENT - PT_REGS_SS(%rsp), %rbp	# sp before the site
	push %rbp
	pushfq					# nothing before has changed any
	push $KERNEL_CS
	push INNER + 8 - PT_REGS_CS(%rsp)	# ip: behind the site
	push $0
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
	push INNER + 16 - PT_REGS_BX(%rsp)	# rbp, from the record
	push %r12
	push %r13
	push %r14
	push %r15
	lea INNER(%rsp), %rbp			# both records are whole
	mov PARENT(%rsp), %rsi			# parent ip
	mov PT_REGS_IP(%rsp), %rdi
	sub $FTRACE_SITE_SIZE, %rdi		# ip: the site itself
	mov $trampoline_ops, %rdx		# sign-extended: kernel addresses fit
	mov %rsp, %rcx
	cld					# the ABI's promise to the handler
	call trampoline_handler
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
	lea 8(%rsp), %rsp			# orig_ax; now ip, cs, flags, sp, ss
	pop RETURN - PT_REGS_CS(%rsp)		# ip, to where ret finds it
	lea 8(%rsp), %rsp
	popfq
	lea RETURN - PT_REGS_SP(%rsp), %rsp	# sp, ss, the records
	ret
done trampoline
