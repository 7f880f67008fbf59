# Three loops that every engine is timed on: plain arithmetic, calls, and calls redirected by a
# register-saving trampoline. Each function takes the iteration count (1 or more) in %rdi and
# returns with `ret`; %rax holds a result that depends on every iteration. Position independent.
#
# Assemble: as -o loops.o loops.S
#
# The five-byte nop at a function's start is spelled in bytes: it is what compilers and the kernel
# agree on for a patchable site, and assemblers differ in how they encode `nop` mnemonics.

	.text

# 4 instructions an iteration. With n = %rdi: %rcx runs n..1, %rax sums it, %rdx folds the sums.
	.globl	tight
	.type	tight, @function
tight:
	mov	%rdi, %rcx
	xor	%eax, %eax
	xor	%edx, %edx
.Ltight:
	add	%rcx, %rax
	xor	%rax, %rdx
	dec	%rcx
	jnz	.Ltight
	xor	%rdx, %rax
	ret
	.size	tight, . - tight

# 7 instructions an iteration, of which a call and a return. Returns 3n.
	.globl	calls
	.type	calls, @function
calls:
	xor	%eax, %eax
.Lcalls:
	mov	%rax, %rsi
	call	calls_leaf
	dec	%rdi
	jnz	.Lcalls
	ret
	.size	calls, . - calls

# Takes x in %rsi, returns x + 3: two instructions behind the untraced site.
	.type	calls_leaf, @function
calls_leaf:
	.byte	0x0f, 0x1f, 0x44, 0x00, 0x00
	lea	3(%rsi), %rax
	ret
	.size	calls_leaf, . - calls_leaf

# 37 instructions an iteration: loop 4, site 1, trampoline 26, handler 3, new function 3.
# Returns 2n; a call that was not redirected would have added 1.
	.globl	redirected
	.type	redirected, @function
redirected:
	push	%rbx
	mov	%rdi, %rbx
	xor	%eax, %eax
.Lredirected:
	mov	%rax, %rdi
	call	old_function
	dec	%rbx
	jnz	.Lredirected
	pop	%rbx
	ret
	.size	redirected, . - redirected

# The patched function: its site calls the trampoline, which never comes back here.
	.type	old_function, @function
old_function:
	call	trampoline
	lea	1(%rdi), %rax
	ret
	.size	old_function, . - old_function

	.type	new_function, @function
new_function:
	.byte	0x0f, 0x1f, 0x44, 0x00, 0x00
	lea	2(%rdi), %rax
	ret
	.size	new_function, . - new_function

# Saves what a C handler may clobber, lets it choose where execution resumes, restores, goes there.
#
#	 0..48	%rdi %rsi %rdx %rcx %r8 %r9 %rax
#	56	where to resume: the site's return address unless the handler says otherwise
#	64	flags
#	72	the site's return address, overwritten on the way out
	.type	trampoline, @function
trampoline:
	pushfq
	sub	$64, %rsp
	mov	%rdi, (%rsp)
	mov	%rsi, 8(%rsp)
	mov	%rdx, 16(%rsp)
	mov	%rcx, 24(%rsp)
	mov	%r8, 32(%rsp)
	mov	%r9, 40(%rsp)
	mov	%rax, 48(%rsp)
	mov	72(%rsp), %rdi
	mov	%rdi, 56(%rsp)
	sub	$5, %rdi		# the site's own address
	mov	%rsp, %rsi		# the saved registers
	call	handler
	mov	56(%rsp), %rax
	mov	%rax, 72(%rsp)
	mov	48(%rsp), %rax
	mov	40(%rsp), %r9
	mov	32(%rsp), %r8
	mov	24(%rsp), %rcx
	mov	16(%rsp), %rdx
	mov	8(%rsp), %rsi
	mov	(%rsp), %rdi
	add	$64, %rsp
	popfq
	ret
	.size	trampoline, . - trampoline

# Takes the site in %rdi and the saved registers in %rsi: redirects every call to new_function.
	.type	handler, @function
handler:
	lea	new_function(%rip), %rax
	mov	%rax, 56(%rsi)
	ret
	.size	handler, . - handler

	.section .note.GNU-stack, "", @progbits
