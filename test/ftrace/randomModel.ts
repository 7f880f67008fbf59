// Functions that call one another, and whoever wants to be called when they are: what a simple model says has to happen.
//
// Every function is there twice, its body and another one, which an ops with IPMODIFY goes on to instead. Each body notes
// that it runs, then calls what its function calls. So does everybody who is called at a site: in guest code, in TypeScript,
// and code that sites call directly. A call is told by the number that all functions hand on in rdi.

import { type Addr, hex, offset } from "../../src/base/addr.ts";
import type { FtraceOps } from "../../src/ftrace/ftrace.ts";
import { SITE_SIZE } from "../../src/ftrace/site.ts";

export type Choose = (limit: number) => number;

/** By function, whom it calls: functions further on, so that calls end. */
export const CALLS: readonly (readonly number[])[] = [[3, 4], [3, 3, 5], [4], [5], [], []];
export const BODIES = ["old", "new"] as const;
export type Body = (typeof BODIES)[number];

export const nameOf = (index: number, body: Body = "old") => `f${index}${body === "old" ? "" : "_new"}`;
/** The label behind the n-th call of a body, which is what the function called returns to. */
export const behind = (index: number, body: Body, n: number) => `${nameOf(index, body)}_r${n}`;

/** Words of a note: who notes (0: nobody yet), ip, parent ip, and the call's number. */
export const NOTE_WORDS = 4;
/** Of each CPU's notes, in bytes. */
export const NOTES_SIZE = 0x4000;
/** By body: what it notes itself as. Handlers note the number that their ops has in `private`, which is larger. */
export const noteOf = (index: number, body: Body) => 1 + 2 * index + BODIES.indexOf(body);
export const FIRST_OPS = 1 + 2 * CALLS.length;
/** How much code there is that sites can call directly; it notes itself by the first numbers behind the bodies'. */
export const DIRECTS = 2;
/** Behind the driver's call. */
export const DRIVER_RETURN = "drive_r";

/** The guest's half. */
export function source(): string {
  const bodies = CALLS.flatMap((_, index) => BODIES.map((body) => bodyText(index, body)));
  return `.include "macros.inc"
.text

# rdi: the number of the call, rsi: the function
untraced drive
	push %rbx
	call *%rsi
	.globl ${DRIVER_RETURN}
${DRIVER_RETURN}:
	pop %rbx
	ret
done drive

# Between calls.
untraced wait_a_little
	mov $20, %ecx
1:	dec %ecx
	jnz 1b
	ret
done wait_a_little

# eax: who notes; r8 ip, r9 parent ip, rdi the call's number. Keeps all but rax, r8 to r11 and the flags.
untraced note
	mov %gs:CPU_NUMBER, %r10d
	lea cursors(%rip), %r11
	lea (%r11,%r10,8), %r11
	imul $${NOTES_SIZE}, %r10, %r10
	add (%r11), %r10
	push %rcx
	lea notes(%rip), %rcx
	add %rcx, %r10
	pop %rcx
	mov %rax, (%r10)
	mov %r8, 8(%r10)
	mov %r9, 16(%r10)
	mov %rdi, 24(%r10)
	addq $${8 * NOTE_WORDS}, (%r11)
	ret
done note

# A handler of ftrace's: rdi ip, rsi parent ip, rdx ops, rcx pt_regs.
untraced note_handler
	sub $8, %rsp
	mov %rdi, %r8
	mov %rsi, %r9
	mov FTRACE_OPS_PRIVATE(%rdx), %rax
	mov PT_REGS_DI(%rcx), %rdi
	call note
	add $8, %rsp
	ret
done note_handler

${Array.from({ length: DIRECTS }, (_, n) => directText(n)).join("\n")}
${bodies.join("\n")}
.bss
	.balign 64
	.globl cursors
cursors:
	.zero 8 * 8
	.globl notes
notes:
	.zero 8 * ${NOTES_SIZE}
`;
}

/** What sites call directly: with the return address into the traced function on top, and its caller's below. */
function directText(n: number): string {
  return `
untraced direct${n}
	push %rax
	push %r8
	push %r9
	mov 24(%rsp), %r8
	sub $FTRACE_SITE_SIZE, %r8
	mov 32(%rsp), %r9
	mov direct${n}_note(%rip), %rax
	call note
	pop %r9
	pop %r8
	pop %rax
	ret
done direct${n}
	.data
	.globl direct${n}_note
	.balign 8
direct${n}_note:
	.quad 0
	.text`;
}

function bodyText(index: number, body: Body): string {
  const name = nameOf(index, body);
  const calls = CALLS[index]!.map(
    (callee, n) => `	mov (%rsp), %rdi
	call ${nameOf(callee)}
	.globl ${behind(index, body, n)}
${behind(index, body, n)}:`,
  );
  return `
${body === "old" ? "traced" : "untraced"} ${name}
	push %rdi
	mov $${noteOf(index, body)}, %eax
	call note
${calls.join("\n")}
	pop %rdi
	ret
done ${name}`;
}

/** One of those who are called. */
export interface Caller {
  readonly ops: FtraceOps;
  /** What it notes. */
  readonly note: number;
  readonly kind: "guest" | "typescript" | "direct" | "ipmodify";
  readonly sharesIpmodify: boolean;
  /** The functions that it is for, while it is registered. */
  wants: ReadonlySet<number>;
  registered: boolean;
}

export interface Note {
  readonly who: number;
  readonly ip: Addr;
  readonly parent: Addr;
}

/** Whether `caller` may be for `wants`, beside the others: the rules of the kernel, said once more. */
export function mayBeFor(caller: Caller, wants: ReadonlySet<number>, others: readonly Caller[]): boolean {
  for (const other of others) {
    if (other === caller || !other.registered || ![...wants].some((index) => other.wants.has(index)))
      continue;
    const kinds = [caller.kind, other.kind];
    if (caller.kind === other.kind && (caller.kind === "direct" || caller.kind === "ipmodify")) return false;
    const direct = [caller, other].find(({ kind }) => kind === "direct");
    if (kinds.includes("ipmodify") && direct !== undefined && !direct.sharesIpmodify) return false;
  }
  return true;
}

/** What a caller does at one function's site during one call. */
export type Certainty = "called" | "not called" | "either";

/** Holds the notes of one call against the model: the first thing that is wrong, in words. */
export class Checker {
  private readonly notes: readonly Note[];
  private readonly callers: readonly Caller[];
  private readonly certainty: (caller: Caller, index: number) => Certainty;
  private readonly symbol: (name: string) => Addr;
  private at = 0;

  constructor(
    notes: readonly Note[],
    callers: readonly Caller[],
    certainty: (caller: Caller, index: number) => Certainty,
    symbol: (name: string) => Addr,
  ) {
    this.notes = notes;
    this.callers = callers;
    this.certainty = certainty;
    this.symbol = symbol;
  }

  check(index: number): string | undefined {
    const wrong = this.visit(index, this.symbol(DRIVER_RETURN));
    if (wrong !== undefined) return wrong;
    return this.at === this.notes.length ? undefined : `${this.notes.length - this.at} notes too many`;
  }

  /** One call of a function: who is called at its site, in any order, one body, and what that calls. */
  private visit(index: number, parent: Addr): string | undefined {
    const name = nameOf(index);
    const site = this.symbol(name);
    const other = offset(this.symbol(nameOf(index, "new")), -SITE_SIZE);
    const called = new Set<number>();
    for (
      let note = this.notes[this.at];
      note !== undefined && note.who >= FIRST_OPS;
      note = this.notes[++this.at]
    ) {
      // Code that shares a site with an ops that changes where it goes on returns there at once.
      const isThere = note.ip === site || (note.who < FIRST_OPS + DIRECTS && note.ip === other);
      if (!isThere) return `at ${name}: ${this.whoIs(note.who)} was told the wrong site, ${hex(note.ip)}`;
      if (note.parent !== parent)
        return `at ${name}: ${this.whoIs(note.who)} was told the wrong caller, ${hex(note.parent)}`;
      if (called.has(note.who)) return `at ${name}: ${this.whoIs(note.who)} was called twice`;
      called.add(note.who);
    }
    for (const caller of this.callers) {
      const is = this.certainty(caller, index);
      const was = called.delete(caller.note);
      if (is === "called" && !was && caller.kind !== "ipmodify")
        return `at ${name}: ${caller.ops} was not called`;
      if (is === "not called" && was) return `at ${name}: ${caller.ops} was called`;
    }
    if (called.size > 0) return `at ${name}: ${[...called].map((who) => this.whoIs(who))} was called`;
    return this.body(index);
  }

  private body(index: number): string | undefined {
    const note = this.notes[this.at++];
    const body = BODIES.find((which) => noteOf(index, which) === note?.who);
    if (body === undefined) return `${nameOf(index)} did not run: ${note?.who ?? "nothing is noted"}`;
    const modifiers = this.callers
      .filter(({ kind }) => kind === "ipmodify")
      .map((caller) => this.certainty(caller, index));
    const wanted = modifiers.includes("called") ? "new" : modifiers.includes("either") ? undefined : "old";
    if (wanted !== undefined && body !== wanted) return `${nameOf(index)} ran its ${body} body`;
    for (const [n, callee] of CALLS[index]!.entries()) {
      const wrong = this.visit(callee, this.symbol(behind(index, body, n)));
      if (wrong !== undefined) return wrong;
    }
    return undefined;
  }

  private whoIs(note: number): string {
    return this.callers.find((caller) => caller.note === note)?.ops.name ?? `somebody (${note})`;
  }
}
