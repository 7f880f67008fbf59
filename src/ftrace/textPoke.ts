// Rewrites live kernel text, all places a phase at a time, the breakpoint way (Linux arch/x86/kernel/alternative.c).
//
// int3 over every first byte; all CPUs serialise; the tails; serialise; the first bytes; serialise. A CPU that meets an
// int3 meanwhile does what the new instruction does (poke_int3_handler in kernel/ftrace.c). Each write is a step of its own,
// through a second mapping of the page, which is writable where the first is executable. Refuses if the bytes there are not
// the bytes expected, and undoes what it has done. Knows nothing of sites.

import { type Addr, offset, PAGE_SIZE, pageOf, pagesOf } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { TEXT_ALIAS } from "../image/layout.ts";
import { act, type Step } from "../machine/agenda.ts";
import type { Memory } from "../machine/memory.ts";
import type { Pool } from "../machine/pool.ts";
import { StructView } from "../machine/struct.ts";
import { BP_PATCHING_DESC, OPCODE, TEXT_POKE_LOC } from "./layout.ts";
import { targetOf } from "./site.ts";

/** One instruction that takes the place of another of the same length, which is more than one byte. */
export interface TextPoke {
  readonly ip: Addr;
  readonly old: Uint8Array;
  readonly new: Uint8Array;
  /** False once that text is gone, with its module, whatever is there now: nothing is written then. Always there if not given. */
  readonly isThere?: () => boolean;
}

/** What was found where something else was expected. */
export interface PokeFailure {
  readonly ip: Addr;
  readonly found: Uint8Array;
  readonly expected: Uint8Array;
}

export interface TextPokerParts {
  readonly memory: Memory;
  readonly pool: Pool;
  /** The guest's `bp_desc`. */
  readonly desc: Addr;
  /** Makes every CPU serialise, and waits until all have. */
  readonly serialise: () => readonly Step[];
  /** An address in words. */
  readonly name: (at: Addr) => string;
}

/** How the bytes get there. Only `breakpoint` is right; the others are there to be compared with it. */
export const WRITERS = {
  breakpoint: "int3, tail, first byte, every CPU serialising after each",
  whole: "all bytes at once",
  halves: "the first bytes, then the rest",
  "tail-first": "the tail, then the first byte",
} as const;
export type Writer = keyof typeof WRITERS;

const INT3 = Uint8Array.of(OPCODE.INT3_INSN_OPCODE);
const HALF = 2;
const RW = { write: true, execute: false, user: false };

/** A stretch of a poke that is written at once. */
interface Write {
  readonly poke: TextPoke;
  /** From the first byte of the instruction, and the byte behind it. */
  readonly from: number;
  readonly to: number;
  readonly bytes: Uint8Array;
  readonly what: string;
}

export class TextPoker {
  writer: Writer = "breakpoint";
  private readonly parts: TextPokerParts;
  private readonly desc: StructView<keyof typeof BP_PATCHING_DESC.fields>;

  constructor(parts: TextPokerParts) {
    this.parts = parts;
    this.desc = new StructView(parts.memory, BP_PATCHING_DESC, parts.desc);
  }

  /** The first of `batch` whose old bytes are not there. */
  check(batch: readonly TextPoke[]): PokeFailure | undefined {
    for (const { ip, old, isThere } of batch) {
      if (isThere?.() === false) continue;
      const found = this.parts.memory.read(ip, old.length);
      if (!sameBytes(found, old)) return { ip, found, expected: old };
    }
    return undefined;
  }

  /** Steps that write `batch`, by address; `done` says what comes then, of what went wrong if something did. */
  steps(batch: readonly TextPoke[], done: (failure?: PokeFailure) => readonly Step[]): readonly Step[] {
    if (batch.length === 0) return done();
    if (this.writer !== "breakpoint") return this.naive(batch, done);
    const { serialise } = this.parts;
    const begin: Step = {
      what: "describe what is going to be written",
      run: () => {
        const failure = this.check(batch);
        if (failure !== undefined) return done(failure);
        const vec = this.describe(batch);
        const finished = (failed?: PokeFailure) => this.end(vec, batch.length, () => done(failed));
        return this.phase(batch, "int3", [], (failed) =>
          failed !== undefined
            ? finished(failed)
            : [
                ...serialise(),
                ...this.phase(batch, "tail", [], (tailFailed) =>
                  tailFailed !== undefined
                    ? finished(tailFailed)
                    : [
                        ...serialise(),
                        ...this.phase(batch, "head", [], (headFailed) => [
                          ...serialise(),
                          ...finished(headFailed),
                        ]),
                      ],
                ),
              ],
        );
      },
    };
    return [begin];
  }

  /** One write for each of `batch` from the `n`th on. Goes on with `then`, or undoes and goes on with that. */
  private phase(
    batch: readonly TextPoke[],
    phase: Phase,
    made: readonly Write[],
    then: (failure?: PokeFailure) => readonly Step[],
  ): readonly Step[] {
    const poke = batch[made.length];
    if (poke === undefined) return then();
    const write = writeOf(phase, poke);
    return [
      {
        what: `write ${write.what} at ${this.parts.name(poke.ip)}`,
        run: () => {
          const failure = this.verify(write, phase);
          if (failure !== undefined) return this.undo(batch, phase, made, () => then(failure));
          this.write(write);
          return this.phase(batch, phase, [...made, write], then);
        },
      },
    ];
  }

  /** Puts back what phases up to `phase` have written, of which the last has got as far as `made`. */
  private undo(
    batch: readonly TextPoke[],
    phase: Phase,
    made: readonly Write[],
    then: () => readonly Step[],
  ): readonly Step[] {
    const { serialise } = this.parts;
    const old = (phaseThen: Phase, pokes: readonly TextPoke[]): Step =>
      act(`undo: ${phaseThen}`, () => {
        for (const poke of pokes) this.write(writeOf(phaseThen, { ...poke, new: poke.old }));
      });
    const written = made.map(({ poke }) => poke);
    switch (phase) {
      case "int3":
        return [old("head", written), ...serialise(), ...then()];
      case "tail":
        return [old("tail", written), ...serialise(), old("head", batch), ...serialise(), ...then()];
      case "head":
        return [
          old("int3", written),
          ...serialise(),
          old("tail", batch),
          ...serialise(),
          old("head", batch),
          ...serialise(),
          ...then(),
        ];
    }
  }

  /** What is not as it should be before `write`. */
  private verify({ poke, from, to }: Write, phase: Phase): PokeFailure | undefined {
    const { memory } = this.parts;
    if (poke.isThere?.() === false) return undefined;
    const expected = phase === "head" ? INT3 : poke.old.slice(from, to);
    const found = memory.read(offset(poke.ip, from), to - from);
    return sameBytes(found, expected) ? undefined : { ip: poke.ip, found, expected };
  }

  private write({ poke, from, bytes }: Write): void {
    const { memory } = this.parts;
    if (poke.isThere?.() === false) return;
    const at = offset(poke.ip, from);
    const size = pagesOf(at, bytes.length).length * PAGE_SIZE;
    memory.alias(TEXT_ALIAS, pageOf(at), size, RW);
    memory.write(offset(TEXT_ALIAS, at - pageOf(at)), bytes);
    memory.unmap(TEXT_ALIAS, size);
  }

  /** Writes down what every breakpoint stands for. */
  private describe(batch: readonly TextPoke[]): Addr {
    const { memory, pool } = this.parts;
    const vec = pool.take(batch.length * TEXT_POKE_LOC.size);
    for (const [n, poke] of batch.entries()) {
      const loc = new StructView(memory, TEXT_POKE_LOC, offset(vec, n * TEXT_POKE_LOC.size));
      loc.set("ip", poke.ip);
      loc.set("target", targetOf(poke.ip, poke.new) ?? 0);
      loc.set("opcode", poke.new[0]!);
    }
    this.desc.set("vec", vec);
    this.desc.set("nr_entries", batch.length);
    // The description before the count that lets handlers read it; that before the first breakpoint. Pairs with
    // poke_int3_handler().
    this.desc.set("refs", 1);
    return vec;
  }

  /** No breakpoint is left: the description goes once no handler reads it any more. */
  private end(vec: Addr, count: number, then: () => readonly Step[]): readonly Step[] {
    const { desc, parts } = this;
    return [
      act("let go of the description", () => desc.set("refs", desc.getNumber("refs") - 1)),
      {
        what: "wait for breakpoint handlers",
        ready: () => desc.getNumber("refs") === 0,
        run: () => {
          parts.pool.give(vec, count * TEXT_POKE_LOC.size);
          return then();
        },
      },
    ];
  }

  /** How not to do it. */
  private naive(
    batch: readonly TextPoke[],
    done: (failure?: PokeFailure) => readonly Step[],
  ): readonly Step[] {
    const failure = this.check(batch);
    if (failure !== undefined) return done(failure);
    const writes = batch.flatMap((poke) => naiveWrites(this.writer, poke));
    return [
      ...writes.map((write) =>
        act(`write ${write.what} at ${this.parts.name(write.poke.ip)}`, () => this.write(write)),
      ),
      ...this.parts.serialise(),
      { what: "end", run: () => done() },
    ];
  }
}

type Phase = "int3" | "tail" | "head";

function writeOf(phase: Phase, poke: TextPoke): Write {
  switch (phase) {
    case "int3":
      return { poke, from: 0, to: 1, bytes: INT3, what: "int3" };
    case "tail":
      return part(poke, 1, poke.new.length, "the tail");
    case "head":
      return part(poke, 0, 1, "the first byte");
  }
}

function naiveWrites(writer: Writer, poke: TextPoke): readonly Write[] {
  const size = poke.new.length;
  switch (writer) {
    case "halves":
      return [part(poke, 0, HALF, "the first half"), part(poke, HALF, size, "the second half")];
    case "tail-first":
      return [part(poke, 1, size, "the tail"), part(poke, 0, 1, "the first byte")];
    default:
      return [part(poke, 0, size, "all bytes")];
  }
}

function part(poke: TextPoke, from: number, to: number, what: string): Write {
  return { poke, from, to, bytes: poke.new.slice(from, to), what };
}
