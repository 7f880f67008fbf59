// A trampoline against its contract: somebody's source file, or one of the kernel's own templates; and what came of it in
// words.
//
// A source defines one global function, or one that is called `trampoline`. It calls `trampoline_handler`, which is guarded
// as most handlers are, or `trampoline_handler_unguarded` if it guards itself, and hands on `trampoline_ops`
// (asm/check/traced.S).

import { basename } from "node:path";
import { type Addr, offset } from "./base/addr.ts";
import { packagePath, readInput } from "./base/file.ts";
import { bug, refuse } from "./base/refuse.ts";
import { Bench, type Fixup, type Trampoline } from "./explore/trampoline/bench.ts";
import {
  type Checked,
  type CheckOptions,
  type Evidence,
  TrampolineCheck,
} from "./explore/trampoline/check.ts";
import { CLAUSES } from "./explore/trampoline/contract.ts";
import { TEMPLATES, type TemplateKind } from "./ftrace/trampoline.ts";
import { Lab, readObject } from "./lab.ts";
import type { ProblemFact, TrampolineReport } from "./report/trampoline.ts";
import { decode } from "./x86/decode.ts";
import { type Disassembler, loadDisassembler } from "./x86/disassemble.ts";
import type { ObjectFile, ObjectSymbol, Relocation } from "./x86/object.ts";

const HARNESS = "asm/check/traced.S";
/** The function's name, where a file has several. */
const NAME = "trampoline";
const HANDLERS = ["trampoline_handler", "trampoline_handler_unguarded"];
const OPS = "trampoline_ops";
/** Instructions shown before and behind a place. */
const AROUND = 2;

/** A laboratory in which trampolines are checked, one after another. */
export class TrampolineChecker {
  private readonly lab: Lab;
  private readonly bench: Bench;
  private readonly disassembler: Disassembler;
  private sources = 0;

  static async open(): Promise<TrampolineChecker> {
    const lab = await Lab.open({ recordCalls: true });
    await lab.loadModule("check", [packagePath(HARNESS)]);
    return new TrampolineChecker(lab, await loadDisassembler());
  }

  private constructor(lab: Lab, disassembler: Disassembler) {
    this.lab = lab;
    this.disassembler = disassembler;
    const { machine, kernel, ftrace, unwinding } = lab;
    this.bench = new Bench({ machine, kernel, ftrace, unwinding, symbol: (name) => this.address(name) });
  }

  /** Checks the trampoline in the source at `path`, or in `text` as if that were there. */
  async source(
    path: string,
    kind: TemplateKind,
    options: CheckOptions,
    text?: string,
  ): Promise<TrampolineReport> {
    const object = await readObject(
      path,
      text === undefined ? readInput(path) : new TextEncoder().encode(text),
    );
    const symbol = trampolineOf(object, path);
    const { lab } = this;
    return this.aside(() => {
      const file = basename(path).replace(/\.\w+$/, "");
      const name = this.sources++ === 0 ? file : `${file} ${this.sources}`;
      lab.modules.offer(name, [object]);
      const image = lab.modules.insert(name);
      const { address: entry, size } = image.symbol(symbol.name);
      const code = image.segmentAt(entry) ?? refuse("trampoline-missing", { file: path });
      const trampoline: Trampoline = {
        ...{ name: symbol.name, kind, entry, size, low: code.address, high: offset(code.address, code.size) },
        ops: lab.ftrace.makeDirect({ name: symbol.name, target: entry }),
        handlers: HANDLERS.map((handler) => this.address(handler)),
        passed: this.address(OPS),
        fixups: fixupsOf(object, symbol, size, (of) => this.address(of)),
      };
      return this.check(trampoline, `${symbol.name} of ${path}`, options);
    });
  }

  /** Checks the copy that an ops gets of one of the kernel's templates. */
  template(kind: TemplateKind, options: CheckOptions): TrampolineReport {
    return this.aside(() => {
      const name = TEMPLATES[kind];
      const flags = { saveRegs: kind === "regs", ipmodify: kind !== "plain", recursion: true };
      const ops = this.lab.ftrace.makeOps({ name, handler: this.address("check_handler"), ...flags });
      const guarded = this.address("ftrace_ops_assist_func");
      const call = this.address(`${name}_call`) - this.address(name) + 1;
      const made = () => ops.trampoline ?? bug(`${name} has no copy: its ops is not registered`);
      const trampoline: Trampoline = {
        ...{ name, kind, ops, handlers: [guarded], passed: ops.struct.at },
        fixups: [{ offset: call, type: "R_X86_64_PC32", target: guarded, addend: -4 }],
        get entry() {
          return made().address;
        },
        get size() {
          return made().size;
        },
        get low() {
          return made().address;
        },
        get high() {
          return offset(made().address, made().size);
        },
      };
      return this.check(trampoline, name, options);
    });
  }

  /** Gives back what the laboratory takes. */
  dispose(): void {
    this.lab.dispose();
  }

  private check(trampoline: Trampoline, name: string, options: CheckOptions): TrampolineReport {
    const { lab, bench } = this;
    return bench.directed(trampoline, () => {
      const checked = new TrampolineCheck(bench, trampoline, options).run();
      return new Reporter(lab, trampoline, this.disassembler).report(name, checked);
    });
  }

  /** Nothing of what `act` does is left. */
  private aside<T>(act: () => T): T {
    const { machine } = this.lab;
    const before = machine.snapshot();
    try {
      return act();
    } finally {
      machine.restore(before);
      before.dispose();
    }
  }

  private address(name: string): Addr {
    return this.lab.symbol(name).address;
  }
}

/** The function that sites are to call. */
function trampolineOf({ symbols, sections }: ObjectFile, path: string): ObjectSymbol {
  const functions = symbols.filter(
    ({ kind, binding, section }) =>
      kind === "func" && binding === "global" && section !== null && sections[section]?.execute === true,
  );
  const [only, ...others] = functions;
  if (only === undefined) return refuse("trampoline-missing", { file: path });
  if (others.length === 0) return only;
  const names = functions.map(({ name }) => name).join(", ");
  return functions.find(({ name }) => name === NAME) ?? refuse("trampoline-several", { file: path, names });
}

/** References from the function to whom it calls and what it hands on. */
function fixupsOf(
  { sections, symbols }: ObjectFile,
  { section, value }: ObjectSymbol,
  size: number,
  address: (name: string) => Addr,
): Fixup[] {
  const relocations: readonly Relocation[] = section === null ? [] : (sections[section]?.relocations ?? []);
  return relocations.flatMap(({ offset: at, type, symbol, addend }) => {
    const name = symbols[symbol]?.name ?? "";
    const known = HANDLERS.includes(name) || name === OPS;
    if (!known || at < value || at >= value + size) return [];
    return [{ offset: at - value, type, target: address(name), addend }];
  });
}

class Reporter {
  private readonly lab: Lab;
  private readonly trampoline: Trampoline;
  private readonly disassembler: Disassembler;

  constructor(lab: Lab, trampoline: Trampoline, disassembler: Disassembler) {
    this.lab = lab;
    this.trampoline = trampoline;
    this.disassembler = disassembler;
  }

  report(trampoline: string, { verdicts, cost, reached }: Checked): TrampolineReport {
    const instructions = this.instructions();
    const missed = instructions.filter((at) => !reached.has(at));
    return {
      trampoline,
      contract: TEMPLATES[this.trampoline.kind],
      holds: verdicts.every(({ holds }) => holds === true),
      clauses: verdicts.map(({ clause, holds, executed, evidence }) => ({
        name: clause,
        promise: CLAUSES[clause],
        holds,
        evidence: { executed, problem: evidence === undefined ? null : this.problem(evidence) },
      })),
      coverage: {
        instructions: instructions.length,
        reached: instructions.length - missed.length,
        missed: missed.map((at) => this.lab.code.describe(at)),
      },
      cost: cost ?? null,
    };
  }

  private instructions(): Addr[] {
    const { entry, size } = this.trampoline;
    const bytes = this.lab.machine.memory.read(entry, size);
    const found: Addr[] = [];
    for (let from = 0; from < size; ) {
      const at = offset(entry, from);
      found.push(at);
      const decoded = decode(bytes.subarray(from), at);
      from += decoded.kind === "instruction" ? decoded.instruction.length : 1;
    }
    return found;
  }

  private problem({ at, why, differences, seed, walked = [], true: real = [] }: Evidence): ProblemFact {
    const { code, marked } = this.around(at);
    return {
      why,
      place: this.lab.code.describe(at),
      instruction: marked,
      seed,
      state: differences.map(({ what, found, expected }) => ({
        what,
        found: word(found),
        expected: word(expected),
      })),
      walked,
      true: real,
      code,
    };
  }

  /** The instruction at `at`, alone and with its neighbours. */
  private around(at: Addr): { readonly code: readonly string[]; readonly marked: string } {
    const { code, machine } = this.lab;
    const range = code.rangeAt(at)?.range ?? code.symbolAt(at)?.symbol;
    if (range === undefined) return { code: [], marked: "(no code of anybody's)" };
    const name = (to: Addr) => code.symbolAt(to)?.symbol.name;
    const bytes = machine.memory.read(range.address, range.size);
    const lines = this.disassembler.disassemble(bytes, range.address, name);
    const index = lines.findIndex((line) => line.at === at);
    const shown = lines.slice(Math.max(0, index - AROUND), index + AROUND + 1);
    return {
      code: shown.map((line) => `${line.at === at ? ">" : " "} ${code.describe(line.at)}  ${line.text}`),
      marked: lines[index]?.text ?? "(inside an instruction)",
    };
  }
}

function word(value: bigint): string {
  return `0x${BigInt.asUintN(64, value).toString(16)}`;
}
