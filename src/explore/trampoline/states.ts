// Register states at a site, made from a number: the same number gives the same state.

import { FLAGS_ALWAYS_ONE } from "../../x86/register.ts";
import { Random } from "../chooser.ts";
import { type Contract, FLAGS, SAVED_REGISTERS, type SavedRegister } from "./contract.ts";

export type Values = Readonly<Record<SavedRegister, bigint>>;

/** What a site finds, and what a handler does. */
export interface State {
  /** By which it can be made again. */
  readonly seed: number;
  readonly registers: Values;
  readonly rflags: bigint;
  /** Words from where rsp leads to the stack's top: odd, so that the stack is aligned as the ABI has it. */
  readonly depth: number;
  /** What lies there, and in the words below. */
  readonly stack: Uint8Array;
  /** Registers and flags as a handler may change them. */
  readonly changed: Values;
  readonly changedFlags: bigint;
  /** What it may leave in registers that are not its caller's, and in the status flags. */
  readonly rubbish: Values;
  readonly rubbishFlags: bigint;
}

/** Values at which something may turn over: signs, widths, addresses that are none. */
const EDGES: readonly bigint[] = [
  0n,
  1n,
  0xffff_ffff_ffff_ffffn,
  0x7fff_ffff_ffff_ffffn,
  0x8000_0000_0000_0000n,
  0x7fff_ffffn,
  0x8000_0000n,
  0xffff_ffffn,
  0x1_0000_0000n,
  0xffff_ffff_8000_0000n,
  0x0000_8000_0000_0000n,
  0xff00n,
];
/** One value in so many is an edge. */
const EDGE_EVERY = 4;
const LEAST_DEPTH = 65;
const DEPTHS = 32;
/** Words below rsp, which nobody may take for anything. */
const BELOW = 128;
const WORD = 8;
const EVERY_FLAG = bitsOf(FLAGS);

/** The `seed`th state that `contract` allows at a site. */
export function makeState(seed: number, contract: Contract): State {
  const random = new Random(seed);
  const depth = LEAST_DEPTH + 2 * random.below(DEPTHS);
  return {
    seed,
    registers: values(random),
    rflags: (flags(random) & contract.flagsAtSite) | FLAGS_ALWAYS_ONE,
    depth,
    stack: new Uint8Array(Int32Array.from({ length: 2 * (depth + BELOW) }, () => random.word()).buffer),
    changed: values(random),
    changedFlags: (flags(random) & FLAGS) | FLAGS_ALWAYS_ONE,
    rubbish: values(random),
    rubbishFlags: flags(random),
  };
}

/** Bytes of a state's stack from rsp on. */
export function usedBytes({ depth }: State): number {
  return depth * WORD;
}

function values(random: Random): Values {
  const value = () => (random.below(EDGE_EVERY) === 0 ? EDGES[random.below(EDGES.length)]! : word(random));
  return Object.fromEntries(SAVED_REGISTERS.map((name) => [name, value()])) as Record<SavedRegister, bigint>;
}

/** All clear, all set, one set, one clear, or by chance. */
function flags(random: Random): bigint {
  const one = EVERY_FLAG[random.below(EVERY_FLAG.length)]!;
  const kinds = [0n, FLAGS, one, FLAGS & ~one, word(random) & FLAGS];
  return kinds[random.below(kinds.length)]!;
}

function word(random: Random): bigint {
  return (BigInt(random.word() >>> 0) << 32n) | BigInt(random.word() >>> 0);
}

function bitsOf(flags: bigint): bigint[] {
  return Array.from({ length: 64 }, (_, n) => 1n << BigInt(n)).filter((bit) => (flags & bit) !== 0n);
}
