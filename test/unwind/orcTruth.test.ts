// Generated ORC against the machine's record of what was really called and interrupted: at every instruction boundary,
// the rule's cfa leads to the slot of the innermost live frame, and its bp to the rbp of the code that the frame is of.
//
// Over assembly and compiled code, trampolines, handlers and entry code, with interrupts in between.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { beforeAll, describe, expect, test } from "vitest";
import { type Addr, addr, hex, toWord } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import { VECTORS } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import { INT3_GAP, NMI_COPY, PT_REGS } from "../../src/machine/ptRegs.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { describeRule, type OrcRule } from "../../src/unwind/orc/entry.ts";
import { OrcTable } from "../../src/unwind/orc/table.ts";
import { CALLS, type Call, MODULE } from "../differential/fixtureGuest.ts";
import { KERNEL_OBJECTS, missing } from "../image/fixtures.ts";
import { beginWorkload, WORKLOADS } from "../lab/workloads.ts";
import { compileShapes } from "./objtool.ts";

const NO_GCC = missing("gcc");

let lab: Lab;
let redirects: Redirect[];
/** By object. */
let fixtures: (call: Call) => Addr;
/** Every address of code that was checked. */
const seen = new Set<Addr>();

beforeAll(async () => {
  lab = await Lab.open({ recordCalls: true });
  const kernel = await lab.loadModule(
    "fixtures",
    KERNEL_OBJECTS.map((name) => packagePath(`fixtures/${name}`)),
  );
  const module = await lab.loadModule("lookup_fixed", [packagePath(`fixtures/${MODULE}`)]);
  fixtures = ({ object, function: name }) => (object === MODULE ? module : kernel).symbol(name).address;
  const to = (name: string) => lab.symbol(name).address;
  redirects = [
    lab.redirect("mem_read", to("mem_read_upper")),
    lab.redirect("leaf", to("leaf_new")),
    lab.redirect("vfs_read", to("zero_read")),
  ];
});

const REGISTER = { sp: "rsp", bp: "rbp", di: "rdi", dx: "rdx", r10: "r10", r13: "r13" } as const;
const number = (word: bigint) => Number(BigInt.asIntN(64, word));
const wordAt = (at: number) => lab.machine.memory.readWord(addr(at));

/** What the rule says, from the registers: where the frame is, the slot of its address, and that code's rbp. */
function apply({ type, cfa, bp }: OrcRule, vcpu: Vcpu): { readonly slot: number; readonly rbp: bigint } {
  const { register } = cfa;
  let anchor = cfa.offset;
  if (register === "sp-indirect") anchor += number(wordAt(vcpu.rsp));
  else if (register === "bp-indirect") anchor = number(wordAt(number(vcpu.get("rbp")) + cfa.offset));
  else if (register !== "undefined") anchor += number(vcpu.get(REGISTER[register]));
  const { ip, bp: saved } = PT_REGS.fields;
  if (type === "REGS") return { slot: anchor + ip.offset, rbp: wordAt(anchor + saved.offset) };
  const slot = type === "CALL" ? anchor - 8 : anchor;
  if (bp.register === "undefined") return { slot, rbp: vcpu.get("rbp") };
  return { slot, rbp: wordAt((bp.register === "prevsp" ? anchor : number(vcpu.get("rbp"))) + bp.offset) };
}

const BREAKPOINT = 3;
const LIMIT = 500_000;
const SAVED = ["rbp", "rbx", "r12", "r13", "r14", "r15"] as const;
let junk = 0x5eed_0000_0000n;

/** Checks the rules along one execution. */
class Checker {
  boundaries = 0;
  /** How many in a row were in no handler. */
  uninterrupted = 0;
  private readonly vcpu: Vcpu;
  /** rbp as each live frame found it, from the outermost. */
  private readonly found: bigint[] = [];

  constructor(vcpu: Vcpu) {
    this.vcpu = vcpu;
  }

  check(): void {
    const { vcpu, found } = this;
    this.boundaries++;
    seen.add(vcpu.rip);
    const frames = lab.machine.trueChain(vcpu.rsp);
    // Words that occur nowhere else, so that no other is taken for the one that was saved.
    if (frames.length === 1 && found.length === 0) for (const name of SAVED) vcpu.set(name, junk++);
    // A frame's first boundary is its function's first: rbp is what its caller had.
    if (frames.length > found.length) found.push(vcpu.get("rbp"));
    found.length = frames.length;
    this.uninterrupted = frames.some(({ kind }) => kind === "interrupt") ? 0 : this.uninterrupted + 1;
    const rule = lab.orc.find(vcpu.rip);
    const [frame] = frames;
    const wrong = rule === undefined ? "no entry" : wrongRule(rule, vcpu, frame, found.at(-1));
    // Thousands of boundaries: nothing is spelled out that holds.
    if (wrong !== undefined)
      expect.fail(`${lab.code.describe(vcpu.rip)}: ${wrong}, of ${rule && describeRule(rule)}`);
  }
}

/** What a rule gets wrong about the innermost live frame, which found `rbp`. */
function wrongRule(
  rule: OrcRule,
  vcpu: Vcpu,
  frame: TrueFrame | undefined,
  rbp: bigint | undefined,
): string | undefined {
  if (frame === undefined) return rule.type === "END_OF_STACK" ? undefined : "the stack ends here";
  if (rule.type === "END_OF_STACK") return "the stack does not end here";
  const said = apply(rule, vcpu);
  // An NMI's entry code copies its frame down, and leaves the hardware's to the next NMI; a breakpoint's makes room for a call.
  const vector = frame.kind === "interrupt" ? frame.vector : undefined;
  const copied = vector === VECTORS.NMI_VECTOR ? NMI_COPY : vector === BREAKPOINT ? INT3_GAP : 0;
  const isThere = said.slot === frame.slot || said.slot === frame.slot - copied;
  if (!isThere) return `the frame's slot is ${hex(frame.slot)}`;
  if (said.rbp !== rbp) return `rbp was ${rbp?.toString(16)}`;
  if ((rule.type === "CALL") !== (frame.kind === "call")) return `the frame is of a ${frame.kind}`;
  return rule.signal === (frame.kind === "interrupt") ? undefined : "`signal` is wrong";
}

/** Runs what was begun to its end, instruction by instruction; `between` comes before each. */
function checkCall(vcpu: Vcpu, between: (checker: Checker) => void = () => {}): number {
  const checker = new Checker(vcpu);
  while (checker.boundaries < LIMIT) {
    checker.check();
    between(checker);
    const exit = vcpu.step();
    if (exit === undefined) continue;
    const exception = lab.kernel.exception(vcpu, exit);
    if (exception !== undefined && exception.fault.vector !== "#PF") continue;
    if (!lab.kernel.returned(exit)) {
      const at =
        exception === undefined ? "" : `: ${exception.fault.vector} at ${lab.code.describe(exception.ip)}`;
      throw new Error(`the call stopped: ${lab.describe(exit)}${at}`);
    }
    return checker.boundaries;
  }
  throw new Error("the call does not end");
}

describe.each([
  { name: "off", on: [] as number[], transition: false },
  { name: "redirected", on: [0, 1], transition: false },
  { name: "sent back", on: [0, 1], transition: true },
  { name: "in the middle of the chain", on: [0, 2], transition: false },
])("with sites $name", ({ on, transition }) => {
  const withSites = (body: () => void) => {
    for (const n of on) {
      redirects[n]!.transition = transition;
      redirects[n]!.enable();
    }
    try {
      body();
    } finally {
      for (const n of on) redirects[n]!.disable();
    }
  };

  test.for(WORKLOADS)("$name: every rule holds", (workload) => {
    withSites(() => expect(checkCall(beginWorkload(lab, workload))).toBeGreaterThan(3));
  });

  test.for(WORKLOADS)("$name: every rule holds with interrupts at every instruction", (workload) => {
    withSites(() => {
      const plain = checkCall(beginWorkload(lab, workload));
      const vcpu = beginWorkload(lab, workload);
      const interrupted = checkCall(vcpu, ({ boundaries, uninterrupted }) => {
        // At least one instruction comes between two.
        if (uninterrupted > 1) vcpu.interrupt(VECTORS.TIMER_VECTOR);
        if (boundaries % 401 === 0) vcpu.nmi();
      });
      expect(interrupted).toBeGreaterThan(5 * plain);
    });
  });
});

test("in the way of every exception that comes back by itself", () => {
  for (const name of ["fault_debug", "fault_breakpoint", "fault_overflow", "fault_bounds", "fault_device"])
    expect(checkCall(lab.begin(lab.symbol(name).address, [])), name).toBeGreaterThan(50);
});

test("in every function that gcc made, as often as it is called with different arguments", () => {
  const taken = new Map<string, number>();
  for (const call of CALLS) {
    const key = `${call.object} ${call.function}`;
    const before = taken.get(key) ?? 0;
    taken.set(key, before + 1);
    if (before > 3) continue;
    const boundaries = checkCall(lab.begin(fixtures(call), call.args.map(BigInt)));
    expect(boundaries, key).toBeGreaterThan(3);
  }
  expect(taken.size).toBeGreaterThan(20);
});

describe.skipIf(NO_GCC !== undefined)(`functions of many shapes${NO_GCC ? `: ${NO_GCC}` : ""}`, () => {
  /** What orcShapes.c calls. */
  const CALLED = `.include "macros.inc"
.text
# A call with words above it that may be taken for arguments: of the function rdi, with the other registers' arguments.
untraced deep
	sub $136, %rsp
	mov %rdi, %rax
	mov %rsi, %rdi
	mov %rdx, %rsi
	mov %rcx, %rdx
	mov %r8, %rcx
	mov %r9, %r8
	mov $6, %r9d
	call *%rax
	add $136, %rsp
	ret
done deep
untraced get
	lea 1(%rdi), %rax
	ret
done get
untraced use
	cmp %rsp, %rdi				# if it is a variable's address, write there
	jb 1f
	incb (%rdi)
1:	ret
done use
untraced change
	mov %rdi, %rax
	ret
done change
untraced panic
	ud2
done panic
untraced do_exit
	ud2
done do_exit
`;
  const ARGUMENTS: Record<string, readonly bigint[]> = {
    one_switch: [2n, 5n],
    two_switches: [3n, 9n],
    alloca_once: [200n],
    alloca_loop: [4n],
    array_of_length: [6n],
    aligned_local: [3n],
    aligned_stack_arguments: [1n, 2n, 3n, 4n, 5n],
    aligned_alloca: [64n, 2n, 3n, 4n, 5n],
    variable: [7n, 1n, 2n, 3n],
    variable_aligned: [7n, 1n, 2n, 3n],
    tail: [1n],
    tail_sometimes: [1n],
    tail_table: [2n, 8n],
    many_arguments: [1n, 2n, 3n, 4n, 5n],
    loops: [3n, 3n],
    dead_ends: [9n],
    unlikely_parts: [-5n, 7n],
    flags_saved: [4n],
    set_jump: [1n],
    recursive: [6n],
    computed_goto: [4n],
  };

  test.each(["-O0", "-O1", "-O2", "-O3", "-Os"])("at %s, with frame pointers and without", async (level) => {
    const folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
    try {
      const called = join(folder, "called.S");
      writeFileSync(called, CALLED);
      for (const frames of ["-fno-omit-frame-pointer", "-fomit-frame-pointer"]) {
        const object = join(folder, `shapes${frames}.o`);
        compileShapes(object, [level, frames]);
        const shapes = await lab.loadModule(`shapes${level}${frames}`, [object, called]);
        for (const [name, args] of Object.entries(ARGUMENTS)) {
          const target = toWord(shapes.symbol(name).address);
          const vcpu = lab.begin(shapes.symbol("deep").address, [target, ...args]);
          expect(checkCall(vcpu), name).toBeGreaterThan(14);
        }
      }
    } finally {
      rmSync(folder, { recursive: true });
    }
  });
});

test("a rule that is wrong is noticed, in each of its parts", () => {
  const { image, orc } = lab;
  const right = orc.tableOf(image);
  const { address, size } = lab.symbol("loop");
  const inside = right.entries.findIndex((entry) => entry.address > address && entry.cfa.register === "bp");
  const entry = right.entries[inside]!;
  expect(entry.address).toBeLessThan(address + size);
  const wrongs: Partial<OrcRule>[] = [
    { cfa: { register: "bp", offset: entry.cfa.offset + 8 } },
    { cfa: { register: "sp", offset: entry.cfa.offset } },
    { bp: { register: "undefined", offset: 0 } },
    { bp: { register: "prevsp", offset: entry.bp.offset - 8 } },
    { type: "REGS_PARTIAL" },
    { signal: true },
  ];
  const loop = WORKLOADS.find(({ name }) => name === "loop")!;
  try {
    for (const wrong of wrongs) {
      orc.replace(image, new OrcTable("wrong", right.entries.with(inside, { ...entry, ...wrong })));
      expect(() => checkCall(beginWorkload(lab, loop)), JSON.stringify(wrong)).toThrow("loop+0x");
    }
  } finally {
    orc.replace(image, right);
  }
});

test("most code has been seen", () => {
  // Of each function with an entry, the share of its entries that a boundary was in.
  const reached = (names: (name: string) => boolean, image = lab.image) => {
    const functions = image.symbols.filter(({ kind, name }) => kind === "func" && names(name));
    const entries = lab.orc
      .tableOf(image)
      .entries.filter(
        ({ address, type }) =>
          type !== "UNDEFINED" && functions.some((f) => address >= f.address && address < f.address + f.size),
      );
    return entries.filter(({ address }) => seen.has(address)).length / entries.length;
  };
  expect(reached((name) => /^(exception_common|interrupt_common)/.test(name))).toBe(1);
  // But for an NMI in an NMI, which test/kernel/nmi.test.ts has, and the way to a switch, which the audits have.
  expect(reached((name) => /^(asm_exc_nmi|return_from_exc)/.test(name))).toBeGreaterThan(0.8);
  expect(
    reached((name) => /^(sys_read|vfs_read|mem_read|zero_read|loop|tail|leaf|klp_redirect)/.test(name)),
  ).toBe(1);
  expect(reached(() => true, lab.code.images[1]!)).toBeGreaterThan(0.9);
});
