# One function for each exception that kernel code can raise by itself. They return if the handler skips the instruction.

.include "macros.inc"

.text

traced fault_divide
	xor %ecx, %ecx
	xor %edx, %edx
	div %ecx
	ret
done fault_divide

traced fault_debug
	int1
	ret
done fault_debug

traced fault_breakpoint
	int $3
	ret
done fault_breakpoint

traced fault_overflow
	int $4
	ret
done fault_overflow

traced fault_bounds
	int $5
	ret
done fault_bounds

traced fault_invalid
	ud1 %eax, %eax
	unwind_hint_func			# a handler may skip it
	ret
done fault_invalid

traced fault_device
	int $7
	ret
done fault_device

traced fault_stack
	frame_begin
	movabs $0x8000000000000000, %rbp	# not canonical, and by rbp
	mov (%rbp), %rax
	frame_end
	ret
done fault_stack

traced fault_protection
	movabs $0x8000000000000000, %rax
	mov (%rax), %rax
	ret
done fault_protection

traced fault_page
	frame_begin
	xor %eax, %eax
	mov (%rax), %rax
	frame_end
	ret
done fault_page
