// The stack of replacements of one function, and its ftrace ops: there while one is in it.

import type { Addr } from "../base/addr.ts";
import { Refusal } from "../base/refuse.ts";
import type { Ftrace, FtraceOps, FtraceRecord } from "../ftrace/ftrace.ts";
import { act, type Step, until } from "../machine/agenda.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { Memory } from "../machine/memory.ts";
import type { Pool } from "../machine/pool.ts";
import { behind, type KlpFunc, makeHandlerOps, makeOriginal } from "./klpFunc.ts";
import { KLP_FUNC } from "./layout.ts";
import type { PatchFunction } from "./patch.ts";

export interface FunctionStack {
  readonly site: FtraceRecord;
  readonly ops: FtraceOps;
  /** What is at the bottom in guest memory: going on behind the site. */
  readonly original: KlpFunc;
  /** The top first. */
  readonly functions: readonly PatchFunction[];
}

export interface FunctionStacksParts {
  readonly ftrace: Ftrace;
  readonly memory: Memory;
  readonly keeper: Keeper;
  readonly pool: Pool;
  /** The handler in guest code. */
  readonly handler: Addr;
  /** Hears of a function whose site calls the handler for ever. */
  readonly stuck: (func: PatchFunction) => void;
}

export class FunctionStacks {
  private readonly parts: FunctionStacksParts;
  private readonly kept: Kept<ReadonlyMap<Addr, FunctionStack>>;

  constructor(parts: FunctionStacksParts) {
    this.parts = parts;
    this.kept = new Kept<ReadonlyMap<Addr, FunctionStack>>(parts.keeper, new Map());
  }

  /** By the functions' addresses. */
  get all(): ReadonlyMap<Addr, FunctionStack> {
    return this.kept.value;
  }

  of(func: PatchFunction): FunctionStack | undefined {
    return func.place === undefined ? undefined : this.all.get(func.place.old);
  }

  /** Those below `func` in its stack, the next one first; below them is the original. */
  below(func: PatchFunction): readonly PatchFunction[] {
    const functions = this.of(func)?.functions ?? [];
    return functions.slice(functions.indexOf(func) + 1);
  }

  /** Puts `func` on top; `failed` gets the error if ftrace has one. */
  push(
    func: PatchFunction,
    site: FtraceRecord,
    failed: (error: Refusal | undefined) => void,
  ): readonly Step[] {
    const { ftrace, memory, pool, handler } = this.parts;
    const { old } = func.place!;
    if (func.isNop) func.struct.set("new_func", behind(site));
    const known = this.all.get(old);
    if (known !== undefined) {
      return [
        act(`${func.name}: what is below`, () => func.struct.set("next", topOf(this.all.get(old)!))),
        act(`${func.name}: on top`, () => {
          const stack = this.all.get(old)!;
          this.set(old, { ...stack, functions: [func, ...stack.functions] });
          stack.ops.struct.set("private", func.struct.at);
        }),
      ];
    }
    const begin: Step = {
      what: `${func.name}: first replacement`,
      run: () => {
        const original = makeOriginal(memory, pool.take(KLP_FUNC.size), site);
        func.struct.set("next", original.at);
        const ops = makeHandlerOps(ftrace, site, handler, func.struct.at);
        this.set(old, { site, ops, original, functions: [func] });
        try {
          ftrace.register(ops);
        } catch (error) {
          if (!(error instanceof Refusal)) throw error;
          this.remove(old);
          failed(error);
          return undefined;
        }
        return [
          until(`the site of ${func.name} is rewritten`, () => ftrace.isDone(ops)),
          act(`${func.name}: see what came of it`, () => {
            if (ops.isRegistered) return;
            this.remove(old);
            failed(undefined);
          }),
        ];
      },
    };
    return [begin];
  }

  /** Takes `func` out, wherever it is in its stack; with the last one the ops goes. */
  pop(func: PatchFunction): readonly Step[] {
    const { ftrace } = this.parts;
    const begin: Step = {
      what: `${func.name}: out of its stack`,
      run: () => {
        const stack = this.of(func);
        if (stack === undefined || !stack.functions.includes(func)) return undefined;
        const { old } = func.place!;
        const n = stack.functions.indexOf(func);
        const functions = stack.functions.filter((other) => other !== func);
        if (functions.length === 0) {
          ftrace.unregister(stack.ops);
          return [
            until(`the site of ${func.name} is rewritten`, () => ftrace.isDone(stack.ops)),
            act(`${func.name}: nothing is left`, () => {
              // Its site could not be rewritten: whoever comes by there goes on to the original, for ever.
              if (stack.ops.isRegistered) this.parts.stuck(func);
              this.remove(old);
            }),
          ];
        }
        // Whoever is at it goes on by its `next`.
        const next = functions[n]?.struct.at ?? stack.original.at;
        const above = functions[n - 1];
        if (above === undefined) stack.ops.struct.set("private", next);
        else above.struct.set("next", next);
        this.set(old, { ...stack, functions });
        return undefined;
      },
    };
    return [begin];
  }

  private remove(old: Addr): void {
    const stack = this.all.get(old);
    if (stack === undefined) return;
    const { ftrace, pool } = this.parts;
    this.kept.value = new Map([...this.all].filter(([at]) => at !== old));
    // Who was preempted on the way to the handler finds the original on top.
    stack.ops.struct.set("private", stack.original.at);
    if (stack.ops.isRegistered) return;
    ftrace.release(stack.ops, () => pool.give(stack.original.at, KLP_FUNC.size));
  }

  private set(old: Addr, stack: FunctionStack): void {
    this.kept.value = new Map([...this.all, [old, stack]]);
  }
}

function topOf({ functions, original }: FunctionStack): Addr {
  return functions[0]?.struct.at ?? original.at;
}
