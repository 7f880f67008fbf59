// good.S with one mistake each, and the clause that has to find it first.

import type { Clause } from "../../src/explore/trampoline/contract.ts";

export interface Mutant {
  readonly mistake: string;
  readonly clause: Clause;
  /** Lines, or parts of them, and what takes their place. Each is there once. */
  readonly edits: readonly (readonly [from: string, to: string])[];
}

const mutant = (clause: Clause, mistake: string, ...edits: Mutant["edits"]): Mutant => ({
  mistake,
  clause,
  edits,
});

const EPILOGUE = "\tlea RETURN(%rsp), %rsp\n\tret\n";
const RESTORE_FLAGS = "\tpush PT_REGS_FLAGS(%rsp)\n\tpopfq\t\t\t\t\t# nothing behind this changes any\n";
const RESTORE_AX = "\tmov PT_REGS_AX(%rsp), %rax\n";
const RESTORE_R11 = "\tmov PT_REGS_R11(%rsp), %r11\n";
const STORE_CS = "\tmovq $KERNEL_CS, PT_REGS_CS(%rsp)\n";
const CALL = "\tcall trampoline_handler\n";
const DONE = "done trampoline\n";

export const MUTANTS: readonly Mutant[] = [
  mutant("registers", "r11 is not restored", [RESTORE_R11, ""]),
  mutant(
    "registers",
    "r8 and r9 are exchanged",
    ["mov PT_REGS_R8(%rsp), %r8", "mov PT_REGS_R9(%rsp), %r8"],
    ["mov PT_REGS_R9(%rsp), %r9\n", "mov PT_REGS_R8(%rsp), %r9\n"],
  ),
  mutant("registers", "only half of rax is restored", [RESTORE_AX, "\tmov PT_REGS_AX(%rsp), %eax\n"]),
  mutant("registers", "rax is what it was used for", [RESTORE_AX, ""]),
  mutant("flags", "flags are not restored", [RESTORE_FLAGS, ""]),
  mutant("flags", "the frame is made with sub, before the flags are saved", [
    "lea -RETURN(%rsp), %rsp",
    "sub $RETURN, %rsp",
  ]),
  mutant("flags", "the frame is left with add, behind the flags", [
    "lea RETURN(%rsp), %rsp\n",
    "add $RETURN, %rsp\n",
  ]),
  mutant("flags", "DF is not cleared", ["\tcld\t", "\tnop\t"]),
  mutant("arguments", "ip is where the call returns to", ["\tsub $FTRACE_SITE_SIZE, %rdi", "\tsub $0, %rdi"]),
  mutant("arguments", "parent ip is from the slot of the return address", [
    "mov PARENT(%rsp), %rsi",
    "mov RETURN(%rsp), %rsi",
  ]),
  mutant("arguments", "the ops is another", ["lea trampoline_ops(%rip)", "lea trampoline_ops + 8(%rip)"]),
  mutant("arguments", "regs is in the caller's frame", ["mov %rsp, %rcx", "lea PARENT(%rsp), %rcx"]),
  mutant("arguments", "the handler is not called", [CALL, ""]),
  mutant("pt_regs", "regs begins a word too high", ["mov %rsp, %rcx", "lea 8(%rsp), %rcx"]),
  mutant("pt_regs", "sp is that behind the site", ["lea PARENT(%rsp), %rax", "lea RETURN(%rsp), %rax"]),
  mutant(
    "pt_regs",
    "r14 is in r15's place, too",
    ["mov %r15, PT_REGS_R15", "mov %r14, PT_REGS_R15"],
    ["mov PT_REGS_R15(%rsp), %r15\n", ""],
  ),
  mutant(
    "pt_regs",
    "cs and ss are exchanged",
    [STORE_CS, "\tmovq $KERNEL_DS, PT_REGS_CS(%rsp)\n"],
    ["movq $KERNEL_DS, PT_REGS_SS", "movq $KERNEL_CS, PT_REGS_SS"],
  ),
  mutant("ip", "regs->ip is not looked at", ["\tmov %rax, RETURN(%rsp)\n", ""]),
  mutant("ip", "regs->ip is read from where the handler cannot change it", [
    "mov PT_REGS_IP(%rsp), %rax",
    "mov INNER + 8(%rsp), %rax",
  ]),
  mutant("changes", "rbx is the handler's to keep, so it is not restored", [
    "\tmov PT_REGS_BX(%rsp), %rbx\n",
    "",
  ]),
  mutant("changes", "rbp is restored from the frame record", [
    "mov PT_REGS_BP(%rsp), %rbp",
    "mov OUTER(%rsp), %rbp",
  ]),
  mutant("stack", "a word is kept below rsp", [
    "\tmov %rsp, %rcx\n",
    "\tmov %rsp, %rcx\n\tmov %rdi, -8(%rsp)\n",
  ]),
  mutant("stack", "the caller's frame is written to", [
    "\tmov %rsp, %rcx\n",
    "\tmov %rsp, %rcx\n\tmov %rsi, PARENT + 8(%rsp)\n",
  ]),
  mutant("stack", "the parent's return address is written to, with itself", [
    "\tmov %rsp, %rcx\n",
    "\tmov %rsp, %rcx\n\tmov %rsi, PARENT(%rsp)\n",
  ]),
  mutant("stack", "the frame is left a word too low", [EPILOGUE, "\tlea RETURN - 8(%rsp), %rsp\n\tret\n"]),
  mutant("stack", "the frame is left a word too high", [EPILOGUE, "\tlea RETURN + 8(%rsp), %rsp\n\tret\n"]),
  mutant(
    "alignment",
    "the word for alignment is left out",
    [".set RETURN, PT_REGS_SIZE + 40", ".set RETURN, PT_REGS_SIZE + 32"],
    [".set PARENT, PT_REGS_SIZE + 48", ".set PARENT, PT_REGS_SIZE + 40"],
  ),
  mutant("unwind", "there is no frame record", ["\tlea INNER(%rsp), %rbp", "\tlea (%rbp), %rbp"]),
  mutant("unwind", "the caller's return address is not in its record", ["\tmov %rsi, OUTER + 8(%rsp)\n", ""]),
  mutant("unwind", "where the inner record is to lead is forgotten", ["\tmov %rax, INNER(%rsp)\n", ""]),
  mutant("interrupted", "regs->ip is read when the frame is gone", [
    EPILOGUE,
    "\tlea PARENT(%rsp), %rsp\n\tunwind_hint_func\n\tjmp *PT_REGS_IP - PARENT(%rsp)\n",
  ]),
  mutant(
    "reentered",
    "r11 goes by a word that all calls share",
    [RESTORE_FLAGS, `\tmov PT_REGS_R11(%rsp), %rax\n\tmov %rax, shared(%rip)\n${RESTORE_FLAGS}`],
    [RESTORE_R11, "\tmov shared(%rip), %r11\n"],
    [DONE, `${DONE}.data\nshared: .quad 0\n`],
  ),
  mutant("recursion", "nobody is guarded", [CALL, "\tcall trampoline_handler_unguarded\n"]),
  mutant("poked", "rax is restored if the site is still a call", [
    RESTORE_FLAGS,
    `\tmov INNER + 8(%rsp), %rax\n\tcmpb $CALL_INSN_OPCODE, -FTRACE_SITE_SIZE(%rax)\n\tje 1f\n\tmovq $0, PT_REGS_AX(%rsp)\n1:${RESTORE_FLAGS}`,
  ]),
  mutant(
    "position",
    "a constant is read from the trampoline by its address",
    [STORE_CS, "\tmov selector, %rax\n\tmov %rax, PT_REGS_CS(%rsp)\n"],
    [DONE, `selector: .quad KERNEL_CS\n${DONE}`],
  ),
  mutant(
    "position",
    "a constant is read by its distance",
    [STORE_CS, "\tmov selector(%rip), %rax\n\tmov %rax, PT_REGS_CS(%rsp)\n"],
    [DONE, `${DONE}.data\nselector: .quad KERNEL_CS\n`],
  ),
  mutant("ends", "it does not end", [CALL, `${CALL}1:\tjmp 1b\n`]),
  mutant("ends", "it raises an exception", [CALL, `${CALL}\tud2\n`]),
  mutant("ends", "it ends for other flags than one has tried", [
    CALL,
    `${CALL}\ttestl $1 << 18, PT_REGS_FLAGS(%rsp)\n1:\tjnz 1b\n`,
  ]),
];

/** What a source becomes by `edits`. */
export function mutate(text: string, { mistake, edits }: Mutant): string {
  return edits.reduce((before, [from, to]) => {
    if (before.split(from).length !== 2) throw new Error(`${mistake}: '${from}' is not there once`);
    return before.replace(from, () => to);
  }, text);
}
