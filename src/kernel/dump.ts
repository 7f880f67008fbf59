// Stacks and registers as the kernel's messages show them (Linux arch/x86/kernel/dumpstack.c, sched_show_task): what an
// unwinder has found, and with a ? before it whatever else on the stack looks like an address of code.

import { type Addr, offset } from "../base/addr.ts";
import type { CodeMap } from "../image/codeMap.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { StructView } from "../machine/struct.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { nextStack } from "../unwind/guess.ts";
import { orcUnwinder } from "../unwind/orcWalker.ts";
import type { Frame, StackInfo, Start, UnwindContext, Unwinder } from "../unwind/walk.ts";
import { isBroken, unlessBroken } from "./broken.ts";
import type { Kernel } from "./kernel.ts";
import { TASK_STATE } from "./layout.ts";
import type { Task } from "./task.ts";
import { liveStart, type UnwindingParts } from "./unwindContext.ts";

type Regs = StructView<keyof typeof PT_REGS.fields>;

/** A general register each, three to a line. */
const REGISTERS = [
  ["RAX", "ax"],
  ["RBX", "bx"],
  ["RCX", "cx"],
  ["RDX", "dx"],
  ["RSI", "si"],
  ["RDI", "di"],
  ["RBP", "bp"],
  ["R08", "r8"],
  ["R09", "r9"],
  ["R10", "r10"],
  ["R11", "r11"],
  ["R12", "r12"],
  ["R13", "r13"],
  ["R14", "r14"],
  ["R15", "r15"],
] as const;
/** Of code before and behind an instruction, in bytes. */
const CODE_BEFORE = 42;
const CODE_BEHIND = 21;
const NO_SYSCALL = -1;

export class Dumper {
  private readonly kernel: Kernel;
  private readonly parts: UnwindingParts & { readonly code: CodeMap };
  private readonly unwinder: Unwinder;

  constructor(kernel: Kernel, parts: UnwindingParts, unwinder = orcUnwinder) {
    this.kernel = kernel;
    this.parts = parts;
    this.unwinder = unwinder;
  }

  /** Every task, as sysrq-t shows them: those that sleep, wait or run, and where. */
  tasks(): string[] {
    const shown = unlessBroken(() => this.kernel.tasks.filter((task) => !task.has("PF_LAB") || task.onCpu));
    const head = "sysrq: Show State";
    if (isBroken(shown)) return [head, unreadable(shown.broken)];
    const lines = shown.map((task) => unlessBroken(() => this.task(task)));
    return [head, ...lines.flatMap((one) => (isBroken(one) ? [unreadable(one.broken)] : one))];
  }

  task(task: Task): string[] {
    const { struct } = task;
    const parent = struct.getNumber("parent");
    const ppid = parent === 0 ? 0 : this.kernel.table.at(parent as Addr).pid;
    const running = task.state === TASK_STATE.TASK_RUNNING ? "  running task    " : "";
    const flags = hex(struct.get("thread_flags"), 8);
    const head = `task:${task.comm.padEnd(15)} state:${task.letter}${running} stack:${pad(this.unused(task), 5)} pid:${pad(task.pid, 5)} ppid:${pad(ppid, 6)} flags:0x${flags}`;
    const vcpu = this.kernel.machine.vcpus.find((candidate) => this.kernel.current(candidate) === task);
    return [head, ...(vcpu === undefined ? this.switchedOut(task) : this.running(vcpu))];
  }

  /** What a CPU is at, from its registers. */
  running(vcpu: Vcpu): string[] {
    const context = this.kernel.unwindContextOf(vcpu, this.parts);
    const regs = [
      `RIP: ${this.place(vcpu.system.getWord("cs"), vcpu.rip)}`,
      this.codeAt(vcpu.rip),
      ...liveRegisters(vcpu),
    ];
    return [...regs, ...this.trace(context, liveStart(vcpu), vcpu.rsp, this.kernel.current(vcpu))];
  }

  private switchedOut(task: Task): string[] {
    const start = this.kernel.startOf(task);
    if (start === undefined) return [];
    const sp = start.from === "unstarted" ? start.sp : start.slot;
    return this.trace(this.kernel.unwindContext(task, this.parts), start, sp, task);
  }

  /** From saved registers on, as after an exception. */
  from(vcpu: Vcpu, regs: Regs): string[] {
    const context = this.kernel.unwindContextOf(vcpu, this.parts);
    const sp = regs.getNumber("sp") as Addr;
    const start: Start = { from: "registers", regs: regs.at };
    return this.trace(context, start, sp, this.kernel.current(vcpu), true);
  }

  /** The whole of what entry code saved. */
  registers(regs: Regs): string[] {
    // Of the kernel's own exceptions it is an error code.
    const isCall = isUser(regs) && regs.getNumber("orig_ax") !== NO_SYSCALL;
    const suffix = isCall ? ` ORIG_RAX: ${hex(regs.get("orig_ax"), 16)}` : "";
    return [
      ...this.interruptedAt(regs, suffix),
      ...threes(REGISTERS.map(([name, field]) => `${name}: ${hex(regs.get(field), 16)}`)),
    ];
  }

  private interruptedAt(regs: Regs, suffix = ""): string[] {
    const ip = regs.getNumber("ip") as Addr;
    return [
      `RIP: ${this.place(regs.get("cs"), ip)}`,
      ...(isUser(regs) ? [] : [this.codeAt(ip)]), // of other tasks' memory nothing is shown
      `RSP: ${hex(regs.get("ss"), 4)}:${hex(regs.get("sp"), 16)} EFLAGS: ${hex(regs.get("flags"), 8)}${suffix}`,
    ];
  }

  private place(cs: bigint, ip: Addr): string {
    const { code } = this.parts;
    return `${hex(cs, 4)}:${code.isText(ip) ? code.describe(ip) : `0x${ip < 0 ? hex(BigInt(ip), 16) : ip.toString(16)}`}`;
  }

  private codeAt(ip: Addr): string {
    const { memory } = this.kernel.machine;
    const from = offset(ip, -CODE_BEFORE);
    if (!memory.isMapped(from, CODE_BEFORE + 1 + CODE_BEHIND))
      return `Code: Unable to access opcode bytes at 0x${hex(BigInt(from), 16)}.`;
    const bytes = [...memory.read(from, CODE_BEFORE + 1 + CODE_BEHIND)].map((byte) => hex(BigInt(byte), 2));
    bytes[CODE_BEFORE] = `<${bytes[CODE_BEFORE]}>`;
    return `Code: ${bytes.join(" ")}`;
  }

  /** What is on the stacks from `sp` on; `shown`: the registers that it starts from are above it already. */
  private trace(
    context: UnwindContext,
    start: Start,
    sp: Addr,
    task: Task | undefined,
    shown = false,
  ): string[] {
    const { frames, doubt } = this.unwinder.walk(context, start);
    const lines = ["Call Trace:"];
    const endsInUser = doubt === null && task !== undefined && !task.has("PF_KTHREAD");
    // A walk from registers begins with what they interrupted.
    let next = shown && frames[0]?.kind === "interrupted" ? 1 : 0;
    let at: Addr | undefined = sp;
    const seen = new Set<Addr>();
    while (at !== undefined) {
      const stack = context.stackAt(at);
      if (stack === undefined || seen.has(stack.low)) break;
      seen.add(stack.low);
      const name = this.nameOf(stack);
      lines.push(` <${name}>`);
      const showRegisters = () => {
        const frame = frames[next];
        if (frame?.kind === "interrupted" && frame.slot >= stack.low && frame.slot < stack.high)
          lines.push(...this.saved(context, frames[next - 1], frame));
        if (frame === undefined && endsInUser && stack.kind === "task")
          lines.push(...this.userRegisters(stack));
      };
      showRegisters();
      for (at = offset(at, 0); at < stack.high; at = offset(at, 8)) {
        const frame: Frame | undefined = frames[next];
        const reliable = at === frame?.slot;
        if (reliable && frame.kind === "interrupted") {
          next++;
          showRegisters();
          continue;
        }
        const word = (context.read(at) ?? Number.NaN) as Addr;
        if (!context.isText(word)) continue;
        const real = context.recover(word, at) ?? word;
        if (real !== word) lines.push(` ? ${this.returnTo(word, start)}`);
        lines.push(` ${reliable ? "" : "? "}${this.returnTo(real, start)}`);
        if (!reliable) continue;
        next++;
        showRegisters();
      }
      lines.push(` </${name}>`);
      at = nextStack(context, stack);
    }
    return lines;
  }

  /** What was saved where `frame` was interrupted: all of it, but for code that has not got so far. */
  private saved(context: UnwindContext, inner: Frame | undefined, frame: Frame): string[] {
    const regs = new StructView(
      this.kernel.machine.memory,
      PT_REGS,
      offset(frame.slot, -PT_REGS.fields.ip.offset),
    );
    const whole = inner === undefined || context.orc.find(offset(inner.address, -1))?.type !== "REGS_PARTIAL";
    return whole ? this.registers(regs) : this.interruptedAt(regs);
  }

  private userRegisters({ high }: StackInfo): string[] {
    const regs = new StructView(this.kernel.machine.memory, PT_REGS, offset(high, -PT_REGS.size));
    return this.registers(regs);
  }

  private returnTo(address: Addr, start: Start): string {
    const { code } = this.parts;
    return start.from === "unstarted" && address === start.ip
      ? code.describe(address)
      : code.describeReturn(address);
  }

  private nameOf({ kind, low }: StackInfo): string {
    if (kind === "task") return "TASK";
    if (kind === "irq") return "IRQ";
    return this.kernel.cpus.some(({ exceptionStacks }) => exceptionStacks[1]?.low === low) ? "NMI" : "#DF";
  }

  /** Bytes above the stack's end that nothing was ever written to. */
  private unused({ stack }: Task): number {
    const { memory } = this.kernel.machine;
    let at = offset(stack.low, 8); // past the mark
    while (at < stack.high && memory.readNumber(at) === 0) at = offset(at, 8);
    return at - stack.low;
  }
}

function unreadable(why: string): string {
  return `(cannot be read: ${why})`;
}

function isUser(regs: Regs): boolean {
  return (regs.getNumber("cs") & 3) !== 0;
}

function liveRegisters(vcpu: Vcpu): string[] {
  const ss = hex(vcpu.system.getWord("ss"), 4);
  return [
    `RSP: ${ss}:${hex(vcpu.get("rsp"), 16)} EFLAGS: ${hex(vcpu.rflags, 8)}`,
    ...threes(
      REGISTERS.map(([name, field]) => {
        const register = /^r\d/.test(field) ? field : `r${field}`;
        return `${name}: ${hex(vcpu.get(register as "rax"), 16)}`;
      }),
    ),
  ];
}

function threes(texts: readonly string[]): string[] {
  return Array.from({ length: texts.length / 3 }, (_, n) => texts.slice(3 * n, 3 * n + 3).join(" "));
}

function hex(word: bigint, digits: number): string {
  return BigInt.asUintN(64, word).toString(16).padStart(digits, "0");
}

function pad(value: number, width: number): string {
  return String(value).padEnd(width);
}
