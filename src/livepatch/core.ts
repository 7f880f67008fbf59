// What all parts of live patching work with: which patches there are, what is under way, where objects are, and the log.

import type { Addr } from "../base/addr.ts";
import type { Ftrace } from "../ftrace/ftrace.ts";
import type { CodeMap } from "../image/codeMap.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import { ERROR, type PatchState } from "../kernel/layout.ts";
import type { Step } from "../machine/agenda.ts";
import { Kept } from "../machine/kept.ts";
import type { Pool } from "../machine/pool.ts";
import type { UnwindContext, Walk } from "../unwind/walk.ts";
import { Checks } from "./checks.ts";
import { FunctionStacks } from "./functionStack.ts";
import {
  DEFAULT_LOG_LEVEL,
  type LivepatchOptions,
  LOG_LEVELS,
  type LogLevel,
  type Weakening,
} from "./options.ts";
import type { Patch, PatchFunction } from "./patch.ts";

export type Target = Exclude<PatchState, "KLP_UNDEFINED">;

export interface Transition {
  readonly patch: Patch;
  readonly target: Target;
  /** How often tasks were looked at that could not be switched. */
  readonly tries: number;
}

export interface LivepatchParts {
  readonly kernel: Kernel;
  readonly ftrace: Ftrace;
  readonly code: CodeMap;
  readonly pool: Pool;
  readonly contextOf: (task: Task) => UnwindContext;
  readonly walkOfCurrent: (task: Task) => Walk | undefined;
  readonly grace: () => () => boolean;
  /** Whether a module of that name could be loaded. */
  readonly isModule: (name: string) => boolean;
  /** Counts one more who needs a module, or one less; false if it is not loaded. Refuses one that is going. */
  readonly use: (module: string, by: 1 | -1) => boolean;
  /** The handler in guest code. */
  readonly handler: Addr;
  /** Makes every CPU serialise, and waits until all have. */
  readonly serialise: () => readonly Step[];
}

export interface State {
  readonly patches: readonly Patch[];
  readonly transition: Transition | undefined;
  /** How often a transition was forced: from then on tasks may be in code that they should have left. */
  readonly forces: number;
  /** Modules that have been heard of, from their coming until their going: those that are mapped already, or still, count for nothing. */
  readonly alive: readonly Image[];
  /** What has come of modules that came or went, by their struct module: an error number, 0, or 1 until it is known. */
  readonly notified: ReadonlyMap<Addr, number>;
}

/** What is done with klp_mutex held upstream is one stretch of this strand. */
export const STRAND = "livepatch";

export class Core {
  options: LivepatchOptions = {};
  readonly parts: LivepatchParts;
  readonly checks: Checks;
  readonly stacks: FunctionStacks;
  private readonly kept: Kept<State>;

  constructor(parts: LivepatchParts) {
    this.parts = parts;
    const { kernel, ftrace, pool, code, handler } = parts;
    const { memory, keeper } = kernel.machine;
    this.checks = new Checks({ code, ftrace, log: (level, text) => this.log(level, text) });
    const stuck = ({ name }: PatchFunction) =>
      this.log("err", `failed to unregister ftrace handler for function '${name}' (-${ERROR.EINVAL})`);
    this.stacks = new FunctionStacks({ ftrace, memory, keeper, pool, handler, stuck });
    this.kept = new Kept<State>(keeper, {
      patches: [],
      transition: undefined,
      forces: 0,
      alive: [],
      notified: new Map(),
    });
  }

  get state(): State {
    return this.kept.value;
  }

  get patches(): readonly Patch[] {
    return this.state.patches;
  }

  get transition(): Transition | undefined {
    return this.state.transition;
  }

  imageOf(object: string): Image | undefined {
    const images = object === VMLINUX ? this.parts.code.images : this.state.alive;
    return images.find(({ name }) => name === object);
  }

  isWeakened(what: Weakening): boolean {
    return this.options.weakened?.includes(what) === true;
  }

  /** A line of the log, if those of its level are logged; `text` may be what makes it. */
  log(level: LogLevel, text: string | (() => string)): void {
    const { logLevel = DEFAULT_LOG_LEVEL } = this.options;
    if (LOG_LEVELS.indexOf(level) > LOG_LEVELS.indexOf(logLevel)) return;
    this.parts.kernel.log.print(`livepatch: ${typeof text === "string" ? text : text()}`);
  }

  set(to: Partial<State>): void {
    this.kept.value = { ...this.kept.value, ...to };
  }
}
