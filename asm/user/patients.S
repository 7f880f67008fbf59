# User tasks that a live patch has a hard time with: what they sleep in, how they are interrupted, that they never come
# by. `init` begins one of each, as often as it is told, and waits for all of them. A program that finds something wrong
# exits with a number other than zero, which its `check` names.

.include "user/program.inc"

# What the module offers (kernel/patients.c).
.set CALL_ROUNDS, 0
.set CALL_PROGRESS, 1
.set CALL_FAILED, 2
.set CALL_SLEEP, 3
.set CALL_COMPUTE, 4
.set USER_PATIENTS, 32

.set USER_STACK, 4096
.set NR_STACKS, 512
# As many bytes from the stack pointer down are a partner's.
.set PARTNER, 2048

# Another task on the lower half of this one's stack, at `label`; here with its number in rax.
.macro partner label
	mov $CLONE_VM, %edi
	lea -PARTNER(%rsp), %rsi
	and $-16, %rsi
	sys NR_clone
	test %eax, %eax
	jz \label
.endm

.text

# init(rdi: how many of each)
program init
	mov %rdi, %r12
	xor %r13d, %r13d			# stacks given out
1:	lea programs(%rip), %rbx
2:	inc %r13
	imul $USER_STACK, %r13, %rsi
	lea stacks(%rip), %rax
	add %rax, %rsi
	mov $CLONE_VM, %edi
	sys NR_clone
	test %eax, %eax
	jz 5f
	js 6f
	add $24, %rbx
	cmpq $0, (%rbx)
	jne 2b
	dec %r12
	jnz 1b
3:	push $0
	mov $-1, %rdi
	mov %rsp, %rsi
	xor %edx, %edx
	sys NR_wait4
	pop %rdx
	test %rax, %rax
	js 4f
	test %edx, %edx
	jz 3b
6:	mov $CALL_FAILED, %edi
	sys NR_laboratory
	jmp 3b
4:	xor %edi, %edi
	jmp exit
5:	lea 8(%rbx), %rsi			# a new task: its name, then its program
	mov $PR_SET_NAME, %edi
	sys NR_prctl
	mov $CALL_ROUNDS, %edi
	sys NR_laboratory
	mov %rax, %r12				# rounds, for every program
	call *(%rbx)
	mov $CALL_PROGRESS, %edi
	mov %rbx, %rax
	lea programs(%rip), %rsi
	sub %rsi, %rax
	xor %edx, %edx
	mov $24, %ecx
	div %rcx
	lea USER_PATIENTS(%rax), %rsi
	sys NR_laboratory
	xor %edi, %edi
	jmp exit
done init

program exit
	sys NR_exit
	ud2
done exit

# A pipe, its ends' numbers at rdi: waits until there is one.
program open_pipe
	push %rbx
	mov %rdi, %rbx
1:	mov %rbx, %rdi
	sys NR_pipe
	test %eax, %eax
	jz 2f
	doze 3000
	jmp 1b
2:	pop %rbx
	ret
done open_pipe

# Sleeps in the read path: sys_read, vfs_read, file->f_op->read.
program pipe_reader
	sub $24, %rsp
	mov %rsp, %rdi
	call open_pipe
	partner pipe_writer
	mov %rax, %r14
	xor %r13d, %r13d
1:	mov (%rsp), %edi
	lea 8(%rsp), %rsi
	movq $0, 8(%rsp)
	mov $1, %edx
	sys NR_read
	test %rax, %rax
	jz 2f
	cmp $1, %rax
	check 1
	add 8(%rsp), %r13			# bytes are rounds, rounds - 1, ..., 1
	jmp 1b
2:	lea 1(%r12), %rax
	imul %r12, %rax
	shr %rax
	cmp %rax, %r13
	check 2
	mov (%rsp), %edi
	sys NR_close
	reap %r14
	test %eax, %eax
	check 3
	add $24, %rsp
	ret
done pipe_reader

# The partner's: the reader's stack is PARTNER bytes up, its pipe at the bottom of that.
program pipe_writer
	lea PARTNER(%rsp), %rbx
	and $-8, %rbx
1:	mov pipe_of_partner(%rbx), %edi
	push %r12
	mov %rsp, %rsi
	mov $1, %edx
	sys NR_write
	pop %rdx
	cmp $1, %rax
	check 4
	doze 1500
	dec %r12
	jnz 1b
	mov pipe_of_partner(%rbx), %edi
	sys NR_close
	xor %edi, %edi
	jmp exit
done pipe_writer
.set pipe_of_partner, 4

# Sleeps until somebody has changed a word.
program futex_sleeper
	sub $24, %rsp
1:	movl $0, 16(%rsp)
	lea 16(%rsp), %r15
	partner futex_waker
	mov %rax, %r14
2:	mov %r15, %rdi
	mov $FUTEX_WAIT, %esi
	xor %edx, %edx
	xor %r10d, %r10d
	sys NR_futex
	cmpl $0, (%r15)
	je 2b
	reap %r14
	test %eax, %eax
	check 5
	dec %r12
	jnz 1b
	add $24, %rsp
	ret
done futex_sleeper

program futex_waker
	doze 2000
	movl $1, (%r15)
	mov %r15, %rdi
	mov $FUTEX_WAKE, %esi
	mov $1, %edx
	sys NR_futex
	xor %edi, %edi
	jmp exit
done futex_waker

# The same with a timeout, which is always what ends it: the call is interrupted and restarted meanwhile.
program futex_timeout
	push $0
	push $4000
	push $0
1:	lea 16(%rsp), %rdi
	mov $FUTEX_WAIT, %esi
	xor %edx, %edx
	mov %rsp, %r10
	sys NR_futex
	cmp $-ETIMEDOUT, %rax
	check 6
	dec %r12
	jnz 1b
	add $24, %rsp
	ret
done futex_timeout

# Never enters the kernel by itself.
program spinner
	imul $4000, %r12, %rax
1:	dec %rax
	jnz 1b
	ret
done spinner

# A task that is stopped, goes on, and is killed.
program stopper
	partner pauser
	mov %rax, %r14
	mov %r14, %rdi
	mov $SIGSTOP, %esi
	sys NR_kill
	reap %r14, WUNTRACED
	cmp $0x137f, %eax
	check 7
	doze 2500
	mov %r14, %rdi
	mov $SIGCONT, %esi
	sys NR_kill
	doze 1000
	mov %r14, %rdi
	mov $SIGKILL, %esi
	sys NR_kill
	reap %r14
	cmp $SIGKILL, %eax
	check 8
	ret
done stopper

program pauser
	sys NR_pause
	jmp pauser
done pauser

# A task that is traced, shown a signal to and spared it.
program tracer
	sub $8, %rsp
	movq $0, (%rsp)
	mov %rsp, %r15
	partner tracee
	mov %rax, %r14
	mov $PTRACE_ATTACH, %edi
	mov %r14, %rsi
	sys NR_ptrace
	test %rax, %rax
	check 9
	reap %r14
	cmp $0x137f, %eax
	check 10
	movq $1, (%r15)
	mov $PTRACE_CONT, %edi
	mov %r14, %rsi
	xor %r10d, %r10d
	sys NR_ptrace
	reap %r14
	cmp $0x0a7f, %eax
	check 11
	doze 1500
	mov $PTRACE_CONT, %edi
	mov %r14, %rsi
	xor %r10d, %r10d
	sys NR_ptrace
	reap %r14
	test %eax, %eax
	check 12
	add $8, %rsp
	ret
done tracer

program tracee
1:	doze 700
	cmpq $0, (%r15)
	je 1b
	sys NR_getpid
	mov %rax, %rdi
	mov $SIGUSR1, %esi
	sys NR_kill
	xor %edi, %edi
	jmp exit
done tracee

# Handlers count in r15's word, which they find by their own register: it is as it was when they came.
program handler
	incq (%r15)
	ret
done handler

program restorer
	sys NR_rt_sigreturn
	ud2
done restorer

# A pipe at rsp, a handler by `action` that counts in r15's word, and a partner, r14, that first signals and then writes.
.macro begin_signalled action
	sub $24, %rsp
	lea 16(%rsp), %r15
	movq $0, (%r15)
	mov $SIGUSR1, %edi
	lea \action(%rip), %rsi
	xor %edx, %edx
	sys NR_rt_sigaction
	mov %rsp, %rdi
	call open_pipe
	sys NR_getpid
	mov %rax, %r13
	partner signaller
	mov %rax, %r14
.endm

.macro end_signalled code
	mov (%rsp), %edi
	sys NR_close
	reap %r14
	test %eax, %eax
	check \code
	add $24, %rsp
	ret
.endm

# A read that a handler interrupts, and that goes on behind it: SA_RESTART.
program restarted
	begin_signalled restart_action
	mov (%rsp), %edi
	lea 8(%rsp), %rsi
	mov $1, %edx
	sys NR_read
	cmp $1, %rax
	check 13
	cmpq $1, (%r15)
	check 14
	end_signalled 15
done restarted

# The partner's: a signal, later a byte.
program signaller
	lea PARTNER(%rsp), %rbx
	and $-8, %rbx
	doze 1500
	mov %r13, %rdi
	mov $SIGUSR1, %esi
	sys NR_kill
	doze 1500
	mov pipe_of_partner(%rbx), %edi
	push %r12
	mov %rsp, %rsi
	mov $1, %edx
	sys NR_write
	pop %rdx
	cmp $1, %rax
	check 16
	mov pipe_of_partner(%rbx), %edi
	sys NR_close
	xor %edi, %edi
	jmp exit
done signaller

# A wait that nothing restarts: user code sees -EINTR, and waits again.
program interrupted
	begin_signalled plain_action
1:	mov (%rsp), %edi
	mov $-1, %r10
	sys NR_epoll_wait
	cmp $-EINTR, %rax
	je 1b
	cmp $1, %rax
	check 17
	cmpq $1, (%r15)
	check 18
	end_signalled 19
done interrupted

# In a function of the kernel's that sleeps and cannot be interrupted, by nothing at all.
program unkillable
1:	mov $CALL_SLEEP, %edi
	mov $3000, %esi
	sys NR_laboratory
	dec %r12
	jnz 1b
	ret
done unkillable

# In one that computes, and is preempted there.
program preempted
1:	mov $CALL_COMPUTE, %edi
	mov $20, %esi
	sys NR_laboratory
	dec %r12
	jnz 1b
	ret
done preempted

# Children that end, one after another; the last by a mistake.
program forker
1:	partner child
	mov %rax, %r14
	reap %r14
	mov %r12, %rdx
	shl $8, %rdx
	cmp %rdx, %rax
	check 20
	dec %r12
	jnz 1b
	partner faulter
	mov %rax, %r14
	reap %r14
	cmp $SIGSEGV, %eax
	check 21
	ret
done forker

program child
	mov %r12, %rdi
	jmp exit
done child

program faulter
	xor %eax, %eax
	mov (%rax), %rax
	ud2
done faulter

# Loads a module and unloads it; or others like it do, and this one waits until it is its turn.
program modprober
1:	lea visitor(%rip), %rdi
	sys NR_init_module
	test %eax, %eax
	jz 2f
	cmp $-EEXIST, %rax
	check 24
	doze 2000
	jmp 1b
2:	doze 1500
	lea visitor(%rip), %rdi
	sys NR_delete_module
	test %eax, %eax
	check 25
	dec %r12
	jnz 1b
	ret
done modprober

# Goes from CPU to CPU.
program migrant
	push $1
	push $-1
1:	xor %edi, %edi
	mov $8, %esi
	lea 8(%rsp), %rdx
	sys NR_sched_setaffinity
	test %rax, %rax
	check 22
	sys NR_sched_yield
	xor %edi, %edi
	mov $8, %esi
	mov %rsp, %rdx
	sys NR_sched_setaffinity
	test %rax, %rax
	check 23
	sys NR_sched_yield
	dec %r12
	jnz 1b
	add $16, %rsp
	ret
done migrant

.section .rodata
.p2align 3
.macro entry name
	.quad \name
.Lname\@:
	.asciz "\name"
	.skip 16 - (. - .Lname\@)
.endm
programs:
	entry pipe_reader
	entry futex_sleeper
	entry futex_timeout
	entry spinner
	entry stopper
	entry tracer
	entry restarted
	entry interrupted
	entry unkillable
	entry preempted
	entry forker
	entry migrant
	entry modprober
	.quad 0
visitor:
	.asciz "visitor"
	.p2align 3
restart_action:
	.quad handler, SA_RESTART, restorer, 0
plain_action:
	.quad handler, 0, restorer, 0

.bss
.p2align 12
	.skip USER_STACK
.globl stacks
stacks:
	.skip USER_STACK * NR_STACKS
