# What a trampoline is checked with (src/explore/trampoline/): a traced function with its caller, and whom the trampoline
# calls. The laboratory decides through the words in .data what the handler does.
#
# Run: fentrylab check-trampoline asm/trampolines/good.S

.include "macros.inc"

.text

# Without a frame of its own, so that at its body's first instruction everything must be as it was at the site.
traced check_traced
	nop
	ret
done check_traced

# Where a handler sends the call that changes regs->ip.
untraced check_replacement
	ret
done check_replacement

untraced check_caller
	frame_begin
	call check_traced
	frame_end
	ret
done check_caller

# Calls it with other registers than any call that this one comes into the middle of: what both share of a trampoline's
# cannot have the same in it.
untraced check_inside
	frame_begin
	push %rbx
	push %r12
	push %r13
	push %r14
	push %r15
	mov $0x5eed0011, %rax
	mov $0x5eed0022, %rbx
	mov $0x5eed0033, %rcx
	mov $0x5eed0044, %rdx
	mov $0x5eed0055, %rsi
	mov $0x5eed0066, %rdi
	mov $0x5eed0077, %r8
	mov $0x5eed0088, %r9
	mov $0x5eed0099, %r10
	mov $0x5eed00aa, %r11
	mov $0x5eed00bb, %r12
	mov $0x5eed00cc, %r13
	mov $0x5eed00dd, %r14
	mov $0x5eed00ee, %r15
	call check_traced
	pop %r15
	pop %r14
	pop %r13
	pop %r12
	pop %rbx
	frame_end
	ret
done check_inside

# void check_handler(u64 ip, u64 parent_ip, struct ftrace_ops *ops, struct pt_regs *regs): calls the traced function itself
# if it is told to.
untraced check_handler
	frame_begin
	.globl check_handler_framed
check_handler_framed:
	cmpq $0, check_deeper(%rip)
	je 1f
	call check_inside
1:	frame_end
	ret
done check_handler

# What a trampoline calls: guarded against being called for what it calls itself, as most handlers are.
untraced trampoline_handler
	jmp ftrace_ops_assist_func
done trampoline_handler

# For a trampoline that guards itself.
untraced trampoline_handler_unguarded
	jmp check_handler
done trampoline_handler_unguarded

.data

# The ops that the handler has to get.
	.globl trampoline_ops
	.p2align 3
trampoline_ops:
	.quad check_handler
	.zero FTRACE_OPS_SIZE - 8

# Whether the handler calls the traced function.
	.globl check_deeper
check_deeper:
	.quad 0
