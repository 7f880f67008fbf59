# A read path: sys_read finds the file, vfs_read checks and counts, file->f_op->read does it.

.include "macros.inc"

.text

# long sys_read(unsigned fd, char *buf, size_t count)
traced sys_read
	frame_begin
	push %rbx
	sub $8, %rsp				# calls are made with the stack 16-aligned
	cmp $NR_FILES, %edi
	jae 1f
	mov %edi, %edi				# the upper half of an unsigned argument is anything
	lea files(%rip), %rax
	mov (%rax,%rdi,8), %rbx
	test %rbx, %rbx
	jz 1f
	mov %rbx, %rdi
	call vfs_read
	add $8, %rsp
	pop %rbx
	frame_end
	ret
1:	mov $-EBADF, %rax
	add $8, %rsp
	pop %rbx
	frame_end
	ret
done sys_read

# ssize_t vfs_read(struct file *file, char *buf, size_t count): limits the count to what is left
traced vfs_read
	frame_begin
	push %rbx
	sub $8, %rsp
	mov %rdi, %rbx
	mov FILE_SIZE_BYTES(%rbx), %rax
	sub FILE_POS(%rbx), %rax
	cmp %rax, %rdx
	cmova %rax, %rdx
	mov FILE_OPS(%rbx), %rax
	call *FILE_OPERATIONS_READ(%rax)	# the call that redirection has to catch as well
	test %rax, %rax
	js 1f
	add %rax, FILE_POS(%rbx)
1:	add $8, %rsp
	pop %rbx
	frame_end
	ret
done vfs_read

# ssize_t mem_read(struct file *file, char *buf, size_t count): bytes of the file's data
traced mem_read
	frame_begin
	mov FILE_DATA(%rdi), %r8
	add FILE_POS(%rdi), %r8
	xor %eax, %eax
	test %rdx, %rdx
	jz 2f
1:	movzbl (%r8,%rax), %ecx
	mov %cl, (%rsi,%rax)
	inc %rax
	cmp %rdx, %rax
	jne 1b
2:	frame_end
	ret
done mem_read

# ssize_t zero_read(struct file *file, char *buf, size_t count): zeroes, without a frame of its own
traced zero_read
	mov %rsi, %rdi
	mov %rdx, %rcx
	xor %eax, %eax
	rep stosb
	mov %rdx, %rax
	ret
done zero_read

# ssize_t mem_read_upper(struct file *file, char *buf, size_t count): mem_read's replacement, which
# gives letters in upper case, so that one can see who answered
untraced mem_read_upper
	frame_begin
	mov FILE_DATA(%rdi), %r8
	add FILE_POS(%rdi), %r8
	xor %eax, %eax
	test %rdx, %rdx
	jz 3f
1:	movzbl (%r8,%rax), %ecx
	lea -'a'(%rcx), %r9d
	cmp $25, %r9d
	ja 2f
	sub $32, %ecx
2:	mov %cl, (%rsi,%rax)
	inc %rax
	cmp %rdx, %rax
	jne 1b
3:	frame_end
	ret
done mem_read_upper

.section .rodata
.p2align 3
mem_fops:
	.quad mem_read
	.quad 0
zero_fops:
	.quad zero_read
	.quad 0
greeting:
	.ascii "hello from the old kernel"
greeting_end:

.data
.p2align 3
.globl files
files:
	.quad greeting_file
	.quad zero_file
	.skip 8 * (NR_FILES - 2)
greeting_file:
	.quad mem_fops
	.quad 0
	.quad greeting_end - greeting
	.quad greeting
zero_file:
	.quad zero_fops
	.quad 0
	.quad 4096
	.quad 0

.bss
.p2align 6
.globl read_buffer
read_buffer:
	.skip 4096
