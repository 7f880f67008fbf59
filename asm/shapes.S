# The shapes of function that patches meet: a leaf, a tail call, a loop that uses what a call returns.

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

.data
.p2align 3
leaf_pointer:
	.quad leaf
