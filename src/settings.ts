// What decides a run of the kernel with its patients, beside what is chosen in it.

export interface RunSettings {
  readonly vcpus: number;
  /** Of each user task. */
  readonly copies: number;
  /** That each patient does. */
  readonly rounds: number;
  /** Instructions after which it ends, wherever it is. */
  readonly budget: number;
}

export const DEFAULT_SETTINGS: RunSettings = { vcpus: 2, copies: 1, rounds: 3, budget: 20_000_000 };

/** More would not find a stack in their program (asm/user/patients.S). */
export const MAX_COPIES = 39;
/** Of the laboratory's kernel. */
export const MAX_VCPUS = 8;
