// Instructions that do nothing here, and those that stop the machine with a value.

import { ANSWER } from "../state.ts";
import type { Family, Lift } from "./definition.ts";

const nothing: Lift = () => {};

/** Order and hints: every access is in program order here. */
export const hints: Family = {
  Nop: nothing,
  Endbr64: nothing,
  Pause: nothing,
  Lfence: nothing,
  Mfence: nothing,
  Sfence: nothing,
  Prefetchnta: nothing,
  Prefetcht0: nothing,
  Prefetcht1: nothing,
  Prefetcht2: nothing,
  Prefetchw: nothing,
};

export const stops: Family = {
  Vmcall: (e) => e.retire(ANSWER.hypercall),
  Hlt: (e) => e.retire(ANSWER.halt),
  Int3: (e) => e.retire(ANSWER.breakpoint),
  Ud2: (e) => e.stopWhen(true, ANSWER.invalidOpcode),
};
