// RFLAGS to and from the lazy form that x86/state.ts describes, for TypeScript's side.

import { FLAG, FLAGS_ALWAYS_ONE, STATUS_FLAGS } from "../x86/register.ts";
import { STATE } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";

const [CF, PF, AF, ZF, SF, OF] = [FLAG.CF, FLAG.PF, FLAG.AF, FLAG.ZF, FLAG.SF, FLAG.OF].map(Number) as [
  ...[number, number, number],
  ...[number, number, number],
];

export function readFlags(host: Host, cpu: HostAddress): bigint {
  const system = BigInt.asUintN(64, host.i64[(cpu + STATE.systemFlags) >> 3]!);
  return system | BigInt(statusFlags(host.i32, cpu));
}

/** In halves and numbers: whoever compares states asks after every instruction. */
function statusFlags(i32: Int32Array, cpu: HostAddress): number {
  const carry = i32[(cpu + STATE.carry) >> 2]!;
  const result = i32[(cpu + STATE.result) >> 2]!;
  const resultHigh = i32[(cpu + STATE.result + 4) >> 2]!;
  const x = i32[(cpu + STATE.x) >> 2]!;
  const xHigh = i32[(cpu + STATE.x + 4) >> 2]!;
  let low = (result ^ (x >> 8)) & 0xff;
  low ^= low >> 4;
  low ^= low >> 2;
  low ^= low >> 1;
  let flags = 0;
  if (carry !== 0) flags |= CF;
  if ((low & 1) === 0) flags |= PF;
  if (((x ^ result) & 0x10) !== 0) flags |= AF;
  if ((result | resultHigh) === 0) flags |= ZF;
  if (resultHigh >>> 31 !== ((xHigh >>> 30) & 1)) flags |= SF;
  if (carry !== (xHigh ^ resultHigh) >>> 31) flags |= OF;
  return flags;
}

export function writeFlags(host: Host, cpu: HostAddress, flags: bigint): void {
  const on = (flag: bigint): bigint => ((flags & flag) === 0n ? 0n : 1n);
  host.i32[(cpu + STATE.carry) >> 2] = Number(on(FLAG.CF));
  // As POPF does it: result is 0 or 1, and x holds what differs from what that implies.
  host.i64[(cpu + STATE.result) >> 3] = 1n - on(FLAG.ZF);
  const x =
    (on(FLAG.AF) << 4n) |
    ((on(FLAG.PF) ^ on(FLAG.ZF)) << 8n) |
    (on(FLAG.SF) << 62n) |
    ((on(FLAG.OF) ^ on(FLAG.CF)) << 63n);
  host.i64[(cpu + STATE.x) >> 3] = BigInt.asIntN(64, x);
  host.i64[(cpu + STATE.systemFlags) >> 3] = (flags & ~STATUS_FLAGS) | FLAGS_ALWAYS_ONE;
}
