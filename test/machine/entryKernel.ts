// A kernel that enters and leaves in all the ways that the record of calls has to follow, at the dictation of a script
// of bytes: system calls and interrupts from user mode through an entry stack, an interrupt stack that the entry code
// switches to, interrupt stacks of the hardware, two tasks that switch and are preempted, and what is done
// to return addresses: retpolines, jumps by push and ret, calls for the address alone, emulated calls.
//
// What instructions mean to the chain of calls beyond what their mnemonic says is in their labels, for a model to go by.

import { type Addr, addr, offset, toWord } from "../../src/base/addr.ts";
import type { MachineOptions } from "../../src/machine/machine.ts";
import {
  ENTRY_STACK_TOP,
  istTop,
  KERNEL_DATA,
  KERNEL_STACK_TOP,
  SELECTOR,
  type SystemGuest,
  setGate,
  systemGuest,
  USER_STACK_TOP,
  USER_TEXT,
} from "./systemGuest.ts";

const STACK = 0x4000;
export const IRQ_STACK_TOP = addr(0xffff_c900_0005_4000n);
const SECOND_STACK_TOP = addr(0xffff_c900_0006_4000n);
const SECOND_USER_STACK_TOP = addr(0x7fff_e000_4000);
const SCRIPT = offset(KERNEL_DATA, 0x1000);
export const SCRIPT_BYTES = 4096;

/** Every stack, as lowest address and one past the highest. */
export const STACKS: readonly (readonly [low: Addr, high: Addr])[] = [
  ...[
    KERNEL_STACK_TOP,
    SECOND_STACK_TOP,
    IRQ_STACK_TOP,
    ENTRY_STACK_TOP,
    USER_STACK_TOP,
    SECOND_USER_STACK_TOP,
  ].map((top) => [offset(top, -STACK), top] as const),
  ...[1, 2, 3, 4, 5, 6, 7].map((n) => [offset(istTop(n), -0x1000), istTop(n)] as const),
];

/** What the script's bytes say; the rest of them end a piece of work. */
export const OPS = [
  "call",
  "retpoline",
  "push_ret",
  "getpc",
  "add_rsp",
  "lea_two",
  "xchg_rsp",
  "breakpoint",
  "emulated",
  "invalid",
  "interrupt",
  "schedule",
  "far_return",
  "iret_same",
  "graph",
  "enter",
  "popf",
  "own_irq_stack",
] as const;

/** Interrupts that tests inject, and what raises the others. */
export const VECTOR = { nmi: 2, breakpoint: 3, invalid: 6, irq: 50, otherIrq: 51, software: 60 } as const;

/** An NMI may not use the hardware's other interrupt stacks: it may have interrupted their handlers. */
const MAY = { schedule: 1, enable: 2, interrupt: 4 } as const;
const SAVED = ["rax", "rcx", "rdx", "rsi", "rdi", "rbx", "rbp"];
const push = SAVED.map((name) => `push %${name}`).join("; ");
const pop = SAVED.toReversed()
  .map((name) => `pop %${name}`)
  .join("; ");
const CS = 8 * SAVED.length + 8;
const WORDS = SAVED.length + 5;

const work = (depth: number, may: number) => `mov $${depth}, %edi; mov $${may}, %esi; call work`;
const op = (name: (typeof OPS)[number], body: string) => `op_${name}: ${body}; jmp next_op`;

const KERNEL = [
  // The first task's beginning: into user mode by a frame on its own stack.
  "call leaf",
  `mov $${toWord(USER_STACK_TOP)}, %rax`,
  `first_user: pushq $${SELECTOR.userData}; push %rax; pushq $0x202; pushq $${SELECTOR.userCode}; pushq $${USER_TEXT}; iretq`,
  // The second's: a first switch "returns" to it.
  `task_start: call leaf; mov $${toWord(SECOND_USER_STACK_TOP)}, %rax; jmp first_user`,

  "sys_entry: mov %rsp, %gs:0; mov %gs:8, %rsp; pushq %gs:0; push %rcx; push %r11; sti",
  work(4, MAY.schedule | MAY.enable | MAY.interrupt),
  "cli; call pick; pop %r11; pop %rcx; test $1, %al; jnz 1f; pop %rsp; sysretq",
  `1: mov %rsp, %rdi; mov $${toWord(ENTRY_STACK_TOP)}, %rax; mov %rax, %rsp`,
  `pushq $${SELECTOR.userData}; pushq (%rdi); push %r11; pushq $${SELECTOR.userCode}; push %rcx; iretq`,

  "other_irq: jmp any_irq",
  "irq: nop",
  `any_irq: ${push}; testb $3, ${CS}(%rsp); jz 1f`,
  `mov %rsp, %rsi; mov %gs:8, %rdi; sub $${8 * WORDS}, %rdi; mov %rdi, %rax; mov $${WORDS}, %ecx; cld; rep movsq`,
  "mov %rax, %rsp",
  "1: incq %gs:24; cmpq $1, %gs:24; jne 2f",
  "mov %gs:16, %rax; mov %rsp, -8(%rax); lea -8(%rax), %rsp",
  work(2, MAY.enable | MAY.interrupt),
  "pop %rsp; jmp 3f",
  `2: ${work(1, MAY.interrupt)}`,
  "3: decq %gs:24; jnz 4f; call pick; test $1, %al; jz 4f; call schedule",
  `4: testb $3, ${CS}(%rsp); jz 5f`,
  `mov %rsp, %rsi; mov $${toWord(offset(ENTRY_STACK_TOP, -8 * WORDS))}, %rdi; mov %rdi, %rax; mov $${WORDS}, %ecx; rep movsq`,
  "mov %rax, %rsp",
  `5: ${pop}; iretq`,

  `nmi: ${push}; ${work(1, 0)}; ${pop}; iretq`,
  `software: push %rax; call leaf; pop %rax; iretq`,
  "invalid: addq $2, (%rsp); iretq",
  // A call is emulated by one more word on the interrupted stack, for which the frame must make room.
  "breakpoint: push %rax; push %rcx; mov $emulated_site + 1, %rax; cmp %rax, 16(%rsp); jne 1f; sub $16, %rsp",
  ...[0, 1, 2, 3, 4, 5, 6].map((n) => `mov ${16 + 8 * n}(%rsp), %rcx; mov %rcx, ${8 * n}(%rsp)`),
  "mov 40(%rsp), %rax; sub $8, %rax; mov %rax, 40(%rsp); mov $emulated_site + 5, %rcx; mov %rcx, (%rax)",
  "mov $leaf, %rax; mov %rax, 16(%rsp)",
  "1: pop %rcx; pop %rax; iretq",

  "schedule: push %rbx; push %rbp; mov %gs:32, %rax; mov %rsp, %gs:64(,%rax,8); xor $1, %rax; mov %rax, %gs:32",
  "mov %gs:80(,%rax,8), %rcx; mov %rcx, %gs:8",
  "switch: mov %gs:64(,%rax,8), %rsp; pop %rbp; pop %rbx; ret",

  // The next byte of the script.
  "pick: mov %gs:48, %rax; inc %rax; and $4095, %eax; mov %rax, %gs:48",
  `movabs $${toWord(SCRIPT)}, %rcx; movzbl (%rcx,%rax), %eax; ret`,
  "leaf: nop; ret",

  // void work(depth, may)
  "work: push %rbx; push %rbp; mov %edi, %ebx; mov %esi, %ebp",
  `next_op: call pick; cmp $${OPS.length}, %eax; jae done; jmp *ops(,%rax,8)`,
  "done: pop %rbp; pop %rbx; ret",
  op("call", "test %ebx, %ebx; jz next_op; lea -1(%rbx), %edi; mov %ebp, %esi; call work"),
  op("retpoline", "mov $leaf, %rax; call thunk"),
  "thunk: call 2f; 1: pause; jmp 1b; 2: mov %rax, (%rsp); ret",
  op("push_ret", "lea 1f(%rip), %rax; push %rax; jump_a: ret; 1: nop"),
  op("getpc", "call 1f; 1: drop_one_a: pop %rax"),
  op("add_rsp", "call 1f; 1: drop_one_b: add $8, %rsp"),
  op("lea_two", "call 1f; 1: call 2f; 2: drop_two: lea 16(%rsp), %rsp"),
  op("xchg_rsp", "call 1f; 1: lea 8(%rsp), %rax; drop_one_c: xchg %rsp, %rax"),
  op("breakpoint", `test $${MAY.interrupt}, %ebp; jz next_op; int3`),
  op(
    "emulated",
    `test $${MAY.interrupt}, %ebp; jz next_op; emulated_site: int3; .byte 0x90, 0x90, 0x90, 0x90`,
  ),
  op("invalid", "ud2"),
  op("interrupt", `test $${MAY.interrupt}, %ebp; jz next_op; int $${VECTOR.software}`),
  op("schedule", `test $${MAY.schedule}, %ebp; jz next_op; cli; call schedule; sti`),
  op("far_return", `pushq $${SELECTOR.kernelCode}; lea 1f(%rip), %rax; push %rax; lretq; 1: nop`),
  op(
    "iret_same",
    `mov %rsp, %rax; pushq $${SELECTOR.kernelData}; push %rax; pushfq; pushq $${SELECTOR.kernelCode}
    lea 1f(%rip), %rax; push %rax; jump_b: iretq; 1: nop`,
  ),
  op("graph", "call graphed"),
  "graphed: mov (%rsp), %rdx; mov $trampoline, %rax; mov %rax, (%rsp); ret",
  "trampoline: push %rdx; jump_c: ret",
  op("enter", "call entered"),
  "entered: enter $16, $0; call leaf; leave; ret",
  op("popf", "pushfq; popfq"),
  op(
    "own_irq_stack",
    `test $${MAY.schedule}, %ebp; jz next_op; cli; incq %gs:24; mov %gs:16, %rax; mov %rsp, -8(%rax); lea -8(%rax), %rsp
    ${work(1, MAY.interrupt)}; pop %rsp; decq %gs:24; sti`,
  ),
  ".balign 8",
  `ops: .quad ${OPS.map((name) => `op_${name}`).join(", ")}`,
].join("\n");

const USER = `nop
  1: call outer; mov $1, %eax; syscall; call 2f; 2: user_drop: pop %rax; syscall; jmp 1b
  outer: nop; call inner; lea 3f(%rip), %rax; push %rax; user_jump: ret; 3: ret
  inner: push %rbx; syscall; pop %rbx; ret
  .globl user_drop, user_jump`;

function labelsOf(source: string): string {
  return [...new Set([...source.matchAll(/([a-z]\w*):/g)].map(([, name]) => name))].join(", ");
}

export interface EntryKernelOptions extends MachineOptions {
  readonly script: Uint8Array;
  /** On which of the hardware's interrupt stacks breakpoints and the software interrupt are handled; 0 for none. */
  readonly breakpointStack?: number;
  readonly softwareStack?: number;
}

export interface EntryKernel extends SystemGuest {
  /** rsp of a task that does not run. */
  savedRsp(task: number): Addr;
}

export async function entryKernel(options: EntryKernelOptions): Promise<EntryKernel> {
  const { script, breakpointStack = 0, softwareStack = 0 } = options;
  const guest = await systemGuest({
    kernel: `${KERNEL}\n.globl ${labelsOf(KERNEL)}`,
    user: USER,
    options: { ...options, recordCalls: true },
  });
  const { machine, vcpu, at } = guest;
  const { memory, calls } = machine;
  const kernelOnly = { write: true, execute: false, user: false };
  for (const top of [IRQ_STACK_TOP, SECOND_STACK_TOP]) memory.map(offset(top, -STACK), STACK, kernelOnly);
  memory.map(offset(SECOND_USER_STACK_TOP, -STACK), STACK, { ...kernelOnly, user: true });
  for (const [low, high] of STACKS) if (high - low !== STACK) calls.addStack(low, high);

  const word = (at: number, value: number) =>
    memory.writeWord(offset(KERNEL_DATA, at), toWord(value as Addr));
  const sleeping = offset(SECOND_STACK_TOP, -24); // rbp, rbx, where to go
  word(8, KERNEL_STACK_TOP);
  word(16, IRQ_STACK_TOP);
  word(72, sleeping);
  word(80, KERNEL_STACK_TOP);
  word(88, SECOND_STACK_TOP);
  memory.writeWord(offset(sleeping, 16), toWord(at("task_start")));
  calls.forget(sleeping);
  calls.plant(offset(sleeping, 16), at("task_start"));
  memory.write(SCRIPT, script);
  vcpu.gsBase = toWord(KERNEL_DATA);
  vcpu.system.setWord("lstar", toWord(at("sys_entry")));
  vcpu.system.setWord("fmask", 0x200n);
  vcpu.system.setWord(
    "star",
    (BigInt(SELECTOR.kernelCode) << 32n) | (BigInt(SELECTOR.userData - 8 - 3) << 48n),
  );
  setGate(guest, VECTOR.nmi, { handler: at("nmi"), ist: 1 });
  setGate(guest, VECTOR.breakpoint, { handler: at("breakpoint"), ist: breakpointStack });
  setGate(guest, VECTOR.invalid, { handler: at("invalid") });
  setGate(guest, VECTOR.irq, { handler: at("irq") });
  setGate(guest, VECTOR.otherIrq, { handler: at("other_irq") });
  setGate(guest, VECTOR.software, { handler: at("software"), ist: softwareStack });
  return {
    ...guest,
    savedRsp: (task) => addr(memory.readWord(offset(KERNEL_DATA, 64 + 8 * task))),
  };
}
