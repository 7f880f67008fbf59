# The shapes of function that patches meet: a leaf, a tail call, a loop that uses what a call returns, one that sleeps,
# one that may not return.

.include "macros.inc"

.text

# long leaf(long x): x + 1
traced leaf
	lea 1(%rdi), %rax
	ret
done leaf

# long leaf_new(long x): x + 100, the leaf's replacement
untraced leaf_new
	lea 100(%rdi), %rax
	ret
done leaf_new

# long tail(long x): leaf(2 * x), by a jump
traced tail
	add %rdi, %rdi
	jmp leaf
done tail

# long loop(long n): the sum of leaf(i) for i from n down to 1
traced loop
	frame_begin
	push %rbx
	push %r12
	mov %rdi, %rbx
	xor %r12d, %r12d
1:	mov %rbx, %rdi
	call leaf
	add %rax, %r12
	dec %rbx
	jnz 1b
	mov %r12, %rax
	pop %r12
	pop %rbx
	frame_end
	ret
done loop

# long through_pointer(long x): leaf(x), called through a function pointer in memory
traced through_pointer
	frame_begin
	call *leaf_pointer(%rip)
	frame_end
	ret
done through_pointer

# long through_thunks(long x): leaf(x) through the thunk of every register; returns by one too
traced through_thunks
	frame_begin
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	sub $8, %rsp
.irp reg, rax, rbx, rcx, rdx, rsi, r8, r9, r10, r11, r12, r13, r14, r15
	lea leaf(%rip), %\reg
	call __x86_indirect_thunk_\reg
.endr
	push %rbp
	push %rdi
	lea leaf(%rip), %rbp
	call __x86_indirect_thunk_rbp
	lea leaf(%rip), %rdi
	call __x86_indirect_thunk_rdi
	pop %rdi
	pop %rbp
	lea 1(%rdi), %rax
	add $8, %rsp
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	frame_end
	jmp __x86_return_thunk
done through_thunks

# void nap(void): lets others run
traced nap
	frame_begin
	call schedule
	frame_end
	ret
done nap

# long nap_between(long x): leaf(x), with a nap between the call and the use of what it returned
traced nap_between
	frame_begin
	push %rbx
	sub $8, %rsp
	call leaf
	mov %rax, %rbx
	call nap
	mov %rbx, %rax
	add $8, %rsp
	pop %rbx
	frame_end
	ret
done nap_between

# long checked(long x): x; nothing is returned, and the caller is never seen again, if that is zero
traced checked
	test %rdi, %rdi
	jnz 1f
	frame_begin
	mov $-EBADF, %rdi
	call do_exit
1:	mov %rdi, %rax
	ret
done checked

.data
.p2align 3
leaf_pointer:
	.quad leaf
