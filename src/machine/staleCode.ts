// How vCPUs see stores to code that others made: what a machine can be told, and what it reports.
//
// Processors promise little: until it passes a serialising instruction, a processor may execute what was there
// before a store, what is there since, or, of an instruction of several bytes, some of each (SDM vol. 3, 8.1.3).

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";

/** A byte that is being fetched, and that the vCPU may see otherwise than memory has it. */
export interface ContestedByte {
  /** Number of the vCPU. */
  readonly vcpu: number;
  /** Where the instruction begins. */
  readonly ip: Addr;
  /** Where the byte is. */
  readonly at: Addr;
  /** The values that it may have, two or more, by when they were there last: the last is what memory has. */
  readonly versions: readonly number[];
}

/** Answers with an index into `versions`. It must not change the machine. */
export type FetchChooser = (byte: ContestedByte) => number;

/** An instruction whose bytes were never in memory together, since the vCPU serialised. */
export interface MixedFetch {
  readonly vcpu: number;
  readonly ip: Addr;
  /** As they were chosen: as many as it took to decode them. */
  readonly bytes: Uint8Array;
  /** As iced-x86 prints it; `(bad)` where the bytes are no instruction, or only its beginning. */
  readonly text: string;
  /** The bytes among them that could have been others. */
  readonly contested: readonly ContestedByte[];
  /** What was there at each instant that the vCPU may see, oldest first: `bytes` is none of these. */
  readonly instants: readonly Uint8Array[];
}

/** Until a vCPU serialises, `choose` decides byte by byte what it fetches of code that others have stored to. */
export interface StaleUntilSerialised {
  readonly kind: "stale-until-serialised";
  /** Asked at every fetch, in the order of the bytes, for those that decoding needs and that are contested. */
  readonly choose: FetchChooser;
  /** Told of a mixed fetch before it is executed: `stop` ends the run before the instruction. */
  readonly mixed: (fetch: MixedFetch) => "stop" | "execute";
}

/** `coherent`: a store to code is seen by every vCPU's next instruction. */
export type CodeVisibility = "coherent" | StaleUntilSerialised;

/** Sees every store at once, as a coherent machine does. */
export const newest: FetchChooser = ({ versions }) => versions.length - 1;

/** Sees what has been gone for longest, as long as that may be. */
export const oldest: FetchChooser = () => 0;

/** The version that `choose` says. */
export function chosenVersion(choose: FetchChooser, byte: ContestedByte): number {
  const choice = choose(byte);
  return byte.versions[choice] ?? refuse("fetch-choice", { choice, count: byte.versions.length });
}
