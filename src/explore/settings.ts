// What decides a run of the kernel with its patients, beside what is chosen in it.

import type { Writer } from "../ftrace/textPoke.ts";
import { DEFAULT_LOG_LEVEL, type LogLevel, type Weakening } from "../livepatch/options.ts";

export interface RunSettings {
  readonly vcpus: number;
  /** Of each user task. */
  readonly copies: number;
  /** That each patient does. */
  readonly rounds: number;
  /** Instructions after which it ends, wherever it is. */
  readonly budget: number;
  /** Whether somebody enables and disables live patches meanwhile. */
  readonly patches: boolean;
  /** What of live patching is turned round, or left out. */
  readonly weakened: readonly Weakening[];
  /** Slices between looks at the invariants; 0 for none. What is found depends on when it is looked for. */
  readonly every: number;
  /** How much live patching logs: the log is in the machine, and so in its hash. */
  readonly logLevel: LogLevel;
}

export const DEFAULT_SETTINGS: RunSettings = {
  vcpus: 2,
  copies: 1,
  rounds: 3,
  budget: 20_000_000,
  patches: false,
  weakened: [],
  every: 4,
  logLevel: DEFAULT_LOG_LEVEL,
};

/** More would not find a stack in their program (asm/user/patients.S). */
export const MAX_COPIES = 39;
/** Of the laboratory's kernel. */
export const MAX_VCPUS = 8;

/** What the exploration of a site that is rewritten is of. */
export interface PokeSettings {
  readonly vcpus: number;
  /** That each vCPU makes. */
  readonly calls: number;
  readonly way: PokeWay;
  readonly writer: Writer;
}

/** From NOP to call, from call to NOP, or the one and then the other. */
export const POKE_WAYS = ["on", "off", "both"] as const;
export type PokeWay = (typeof POKE_WAYS)[number];
