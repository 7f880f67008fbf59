# What compilers call for indirect branches and returns (-mindirect-branch=thunk-extern, -mfunction-return=thunk-extern),
# as a kernel has it on CPUs that need no more than a plain branch.

.include "macros.inc"

.macro indirect_thunk reg
untraced __x86_indirect_thunk_\reg
	jmp *%\reg
	int3					# nothing is to be speculated behind it
done __x86_indirect_thunk_\reg
.endm

.text

.irp reg, rax, rbx, rcx, rdx, rsi, rdi, rbp, r8, r9, r10, r11, r12, r13, r14, r15
indirect_thunk \reg
.endr

untraced __x86_return_thunk
	ret
	int3
done __x86_return_thunk
