// Every vector: raised at the start, in the middle and at the end of a basic block, cold (stepped and run) and hot, in the
// kernel and by user code, on the stack that is there and on an interrupt stack. Looked at where the handler begins: frame,
// error code, stack, registers, count; then the cause is mended, and what the program computes must be what it computes anyway.
// exceptionRows.ts has the vectors.

import { describe, expect, test } from "vitest";
import { type Addr, offset, toWord } from "../../src/base/addr.ts";
import { FLAG, GPR, type RegisterName } from "../../src/x86/register.ts";
import {
  ABSENT,
  ABSENT_STACK,
  gate,
  type InMode,
  of,
  type Registers,
  ROWS,
  type Row,
} from "./exceptionRows.ts";
import {
  ENTRY_STACK_TOP,
  type GateOptions,
  GDT,
  istTop,
  KERNEL_STACK_TOP,
  onReturn,
  reset,
  resetToUser,
  SELECTOR,
  type SystemGuest,
  systemGuest,
  USER_STACK_TOP,
} from "./systemGuest.ts";

const IST = 3;
/** Vectors whose gates a row may change. */
const USED = [0, 1, 2, 3, 4, 5, 6, 8, 10, 11, 12, 13, 14, 50];

/** Three loops, r15 times each, with the instruction at `here<n>`; and how many are before it. */
const PLACES = [
  {
    name: "start",
    before: 1,
    text: (code: string) => `loop0: jmp here0\n here0: ${code}\n behind0: inc %r9`,
  },
  {
    name: "middle",
    before: 2,
    text: (code: string) => `loop1: inc %r8\n add %r8,%r10\n here1: ${code}\n behind1: inc %r9`,
  },
  {
    name: "end",
    before: 1,
    text: (code: string) => `loop2: inc %r8\n here2: ${code}\n behind2: jmp 1f\n 1: inc %r9`,
  },
] as const;

function source(code: string): string {
  const loops = PLACES.map(({ text }, n) => `${text(code)}\n dec %r15\n jne loop${n}\n vmcall`);
  const names = ["loop", "here", "behind"].flatMap((name) => [0, 1, 2].map((n) => `.globl ${name}${n}`));
  return ["jmp loop0", ...loops, ...names].join("\n");
}

const FLAGS = 2n | FLAG.IF | FLAG.DF | FLAG.NT | FLAG.ID;

/** One row at one place and level: what is done to it, and what is seen of it. */
class Trial {
  readonly here: Addr;
  readonly before: number;
  readonly name: string;
  private readonly guest: SystemGuest;
  private readonly row: Row;
  private readonly user: boolean;
  private readonly place: number;

  constructor(guest: SystemGuest, row: Row, user: boolean, place: number) {
    this.guest = guest;
    this.row = row;
    this.user = user;
    this.place = place;
    this.here = guest.at(`here${place}`);
    this.before = PLACES[place]!.before;
    this.name = PLACES[place]!.name;
  }

  /** At the loop's start, to go round `times`; nothing is armed. */
  begin(times: number, registers: InMode<Registers> | undefined): void {
    const { guest, row, user, place, here } = this;
    const { vcpu } = guest;
    (user ? resetToUser : reset)(guest);
    for (const [n, name] of GPR.entries()) vcpu.set(name, 0x1111n * BigInt(n + 1));
    vcpu.rsp = offset(user ? USER_STACK_TOP : KERNEL_STACK_TOP, -21);
    const behind = toWord(guest.at(`behind${place}`));
    const chosen = { r15: times, ...row.calm?.(user, behind), ...of(registers, user) };
    for (const [name, value] of Object.entries(chosen)) vcpu.set(name as RegisterName, BigInt(value));
    vcpu.rip = guest.at(`loop${place}`);
    vcpu.rflags = FLAGS;
    vcpu.system.setWord("dr", 0xffff0ff0n, 6);
    vcpu.system.setWord("dr", 0x400n, 7);
    for (const vector of USED) gate(guest, vector);
    row.mend?.(guest, here, user);
    for (const vector of USED) onReturn(guest, vector, {});
  }

  arm(options: Partial<GateOptions>): void {
    gate(this.guest, this.row.vector, options);
    this.row.arm?.(this.guest, this.here, this.user);
  }

  /** Puts right what was wrong, so that the program can go on. */
  mend(): void {
    const { row, user, guest, here, place } = this;
    row.mend?.(guest, here, user);
    if (row.elsewhere !== undefined) return;
    const calm: Registers = row.calm?.(user, toWord(guest.at(`behind${place}`))) ?? {};
    for (const name of Object.keys(of(row.hostile, user) ?? {}) as RegisterName[])
      guest.vcpu.set(name, BigInt(calm[name]!));
  }

  /** What the program comes to. */
  result(): unknown {
    const { vcpu } = this.guest;
    const { rcx, ...registers } = vcpu.registers();
    return { registers, rcx: this.row.elsewhere === undefined ? rcx : 0n, flags: vcpu.rflags };
  }
}

const MODES = ["stepped", "run", "hot"] as const;

/** Executes up to `count` instructions and deliveries, or until `until` is next. */
function go({ vcpu }: SystemGuest, stepped: boolean, count: number, until?: Addr): string {
  if (!stepped) return vcpu.run({ budget: count, ...(until === undefined ? {} : { until }) }).kind;
  for (let n = 0; n < count; n++) {
    const exit = vcpu.step();
    if (exit !== undefined) return exit.kind;
    if (vcpu.rip === until) return "reached";
  }
  return "budget";
}

describe.each(Object.keys(ROWS))("%s", (name) => {
  const row = ROWS[name]!;
  const levels = (["kernel", "user"] as const).filter((level) => (row.only ?? level) === level);
  test.each(levels)("%s code", async (level) => {
    const user = level === "user";
    const text = source(row.code);
    const guest = await systemGuest(user ? { user: text } : { kernel: text });
    const { vcpu, machine } = guest;
    machine.memory.writeWord(offset(GDT, ABSENT), 0x00cf_7300_0000_ffffn);
    machine.memory.writeWord(
      offset(GDT, ABSENT_STACK),
      user ? 0x00cf_7300_0000_ffffn : 0x00cf_1300_0000_ffffn,
    );
    vcpu.system.setWord("gdtLimit", 0x5fn);
    for (const place of PLACES.keys()) {
      const trial = new Trial(guest, row, user, place);
      trial.begin(1, undefined);
      go(guest, true, 100);
      const expected = trial.result();
      const counts = new Set<string>();
      for (const mode of MODES) {
        if (mode === "hot") {
          trial.begin(400, undefined);
          expect(go(guest, false, 100_000)).toBe("hypercall");
          expect(machine.regions.find(guest.at(`loop${place}`), user)).toBeDefined();
        }
        for (const ist of [0, IST]) {
          const count = check(guest, trial, row, user, mode === "stepped", ist);
          expect(trial.result(), `${mode}, ${trial.name}, ist ${ist}`).toEqual(expected);
          counts.add(`${count}`);
        }
      }
      expect(counts.size).toBe(1);
    }
  });
});

/** From the loop's start into the handler, where everything is looked at, and on to the end; how many instructions that was. */
function check(
  guest: SystemGuest,
  trial: Trial,
  row: Row,
  user: boolean,
  stepped: boolean,
  ist: number,
): number {
  const { vcpu, machine } = guest;
  trial.begin(1, row.hostile);
  for (let n = 0; n < trial.before; n++) vcpu.step();
  expect(vcpu.rip).toBe(trial.here);
  const registers = vcpu.registers();
  const flags = vcpu.rflags;

  trial.begin(1, row.hostile);
  const type = ist === 0 ? 14 : 15;
  trial.arm({ ist, type });
  const begun = vcpu.instructions;
  if (row.before !== undefined) {
    go(guest, stepped, trial.before);
    row.before(guest, trial.here, user);
  }
  expect(go(guest, stepped, 1000, guest.at(`vector${row.vector}`))).toBe("reached");

  const error = of(row.error, user);
  const top = ist !== 0 ? istTop(ist) : user ? ENTRY_STACK_TOP : offset(KERNEL_STACK_TOP, -32);
  expect(vcpu.rsp).toBe(offset(top, error === undefined ? -40 : -48));
  const frame = Array.from({ length: error === undefined ? 5 : 6 }, (_, n) =>
    machine.memory.readWord(offset(vcpu.rsp, 8 * n)),
  );
  if (error !== undefined) expect(frame.shift()).toBe(BigInt(error));
  const selectors = [SELECTOR.kernelCode, SELECTOR.kernelData];
  const [cs, ss] = user ? [SELECTOR.userCode, SELECTOR.userData] : selectors;
  const resume = row.trap === true || row.interrupt === true ? 0n : FLAG.RF;
  expect(frame).toEqual([
    toWord(row.elsewhere?.rip ?? offset(trial.here, row.trap ? row.length : 0)),
    BigInt(cs!),
    flags | resume | (row.flags ?? 0n),
    registers.rsp,
    BigInt(ss!),
  ]);
  expect(vcpu.rflags).toBe(flags & ~FLAG.NT & (type === 14 ? ~FLAG.IF : -1n));
  expect({ ...vcpu.registers(), rsp: registers.rsp }).toEqual(registers);
  expect(vcpu.system.user).toBe(false);
  expect(vcpu.system.getWord("cs")).toBe(BigInt(SELECTOR.kernelCode));
  expect(vcpu.system.getWord("ss")).toBe(user ? 0n : BigInt(SELECTOR.kernelData));
  const cr2 = of(row.cr2, user);
  if (cr2 !== undefined) expect(vcpu.system.getWord("cr2")).toBe(cr2);
  expect(vcpu.system.getWord("dr", 6)).toBe(0xffff0ff0n | (row.dr6 ?? 0n));
  const retired = row.elsewhere === undefined ? (row.trap ? 1 : 0) : 1;
  expect(vcpu.instructions - begun).toBe(trial.before + retired);

  trial.mend();
  expect(go(guest, stepped, 1000)).toBe("hypercall");
  return vcpu.instructions - begun;
}
