# User memory, which may not be there: where the kernel goes on when it is not.

.include "macros.inc"

.text

# size_t copy_user(void *to, const void *from, size_t count): bytes that were not copied
untraced copy_user
	mov %rdx, %rcx
	may_fault 1f
	rep movsb
1:	mov %rcx, %rax
	ret
done copy_user
