// One program, executed instruction by instruction on native Unicorn, as a second opinion.
//
// Give it code, registers and data pages; it gives the whole state after every instruction. An opinion,
// not the truth: flags that the manual calls undefined may be otherwise than on silicon, an address that
// is not canonical is UC_ERR_READ_UNMAPPED and not #GP, and a REP instruction takes a step for every
// iteration. Where it is missing, tests skip with the reason that `openUnicornMachine` gives.

import {
  loadUnicorn,
  type Missing,
  PROT,
  UNICORN_REGISTERS,
  type UnicornCode,
  type UnicornContext,
  type UnicornEngine,
  type UnicornRegister,
} from "../../bench/unicorn.ts";
import { type Addr, offset, PAGE_SIZE, pageOf } from "../../src/base/addr.ts";

const INT3 = 0xcc;

export interface Page {
  /** A multiple of 4096. */
  readonly at: Addr;
  /** At most 4096; the rest of the page is zero. */
  readonly bytes: Uint8Array;
  /** A sum of `PROT`; readable and writable when not given. */
  readonly perms?: number;
}

export interface Program {
  readonly at: Addr;
  /** Mapped to be read and executed, with int3 around it. */
  readonly code: Uint8Array;
  /** 0 where not given, and 2 for rflags; rip is `at`. */
  readonly registers?: Readonly<Partial<Record<UnicornRegister, bigint>>>;
  /** Apart from each other and from the code's pages. */
  readonly pages?: readonly Page[];
}

/** What one instruction left. */
export interface State {
  /** `UC_ERR_OK`, or why the instruction did not complete: rip is then what Unicorn left, mostly its address. */
  readonly stop: UnicornCode;
  readonly registers: Readonly<Record<UnicornRegister, bigint>>;
  /** The content of `Program.pages`, in that order, 4096 bytes each. */
  readonly pages: readonly Uint8Array[];
}

/** Runs one program after the other on one engine. Close it after use. */
export class UnicornMachine {
  readonly #engine: UnicornEngine;
  readonly #fresh: UnicornContext;
  #mapped: { at: Addr; size: number }[] = [];
  #pages: readonly Page[] = [];

  constructor(engine: UnicornEngine) {
    this.#engine = engine;
    this.#fresh = engine.saveContext();
  }

  /** Replaces registers and memory by those of `program`. */
  load(program: Program): void {
    for (const { at, size } of this.#mapped) this.#engine.unmapMemory(at, size);
    this.#mapped = [];
    this.#pages = program.pages ?? [];
    const first = pageOf(program.at);
    const last = pageOf(offset(program.at, program.code.length - 1));
    const text = new Uint8Array(last - first + PAGE_SIZE).fill(INT3);
    text.set(program.code, program.at - first);
    this.#map(first, text, PROT.READ + PROT.EXEC);
    for (const { at, bytes, perms } of this.#pages) {
      const page = new Uint8Array(PAGE_SIZE);
      page.set(bytes);
      this.#map(at, page, perms ?? PROT.READ + PROT.WRITE);
    }
    this.#engine.restoreContext(this.#fresh);
    const registers = { rflags: 2n, ...program.registers, rip: BigInt(program.at) };
    for (const name of UNICORN_REGISTERS) this.#engine.regWrite(name, registers[name] ?? 0n);
  }

  /** Executes the next instruction. */
  step(): State {
    const stop = this.#engine.step(this.#engine.regRead("rip"));
    const registers: Partial<Record<UnicornRegister, bigint>> = {};
    for (const name of UNICORN_REGISTERS) registers[name] = this.#engine.regRead(name);
    return {
      stop,
      registers: registers as Record<UnicornRegister, bigint>,
      pages: this.#pages.map(({ at }) => this.#engine.readMemory(at, PAGE_SIZE)),
    };
  }

  /** Loads `program` and gives the state after each instruction: `steps` of them, fewer when one does not complete. */
  run(program: Program, steps: number): State[] {
    this.load(program);
    const states: State[] = [];
    while (states.length < steps) {
      const state = this.step();
      states.push(state);
      if (state.stop !== "UC_ERR_OK") break;
    }
    return states;
  }

  close(): void {
    this.#engine.close();
  }

  #map(at: Addr, bytes: Uint8Array, perms: number): void {
    this.#engine.mapMemory(at, bytes.length, perms);
    this.#mapped.push({ at, size: bytes.length });
    this.#engine.writeMemory(at, bytes);
  }
}

/** A machine, or the reason for there being none here: pass it to `ctx.skip`. */
export async function openUnicornMachine(): Promise<UnicornMachine | Missing> {
  const unicorn = await loadUnicorn();
  return "missing" in unicorn ? unicorn : new UnicornMachine(unicorn.open());
}
