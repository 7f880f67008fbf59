// RFLAGS to and from the lazy form that x86/state.ts describes, for TypeScript's side.

import { FLAG, FLAGS_ALWAYS_ONE, STATUS_FLAGS } from "../x86/register.ts";
import { STATE } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";

const bit = (word: bigint, n: bigint): bigint => (word >> n) & 1n;

export function readFlags(host: Host, cpu: HostAddress): bigint {
  const carry = BigInt(host.i32[(cpu + STATE.carry) >> 2]!);
  const result = BigInt.asUintN(64, host.i64[(cpu + STATE.result) >> 3]!);
  const x = BigInt.asUintN(64, host.i64[(cpu + STATE.x) >> 3]!);
  let low = (result ^ (x >> 8n)) & 0xffn;
  for (const shift of [4n, 2n, 1n]) low ^= low >> shift;
  let flags = BigInt.asUintN(64, host.i64[(cpu + STATE.systemFlags) >> 3]!);
  if (carry !== 0n) flags |= FLAG.CF;
  if ((low & 1n) === 0n) flags |= FLAG.PF;
  if (bit(x ^ result, 4n) !== 0n) flags |= FLAG.AF;
  if (result === 0n) flags |= FLAG.ZF;
  if (bit(result, 63n) !== bit(x, 62n)) flags |= FLAG.SF;
  if (carry !== bit(x ^ result, 63n)) flags |= FLAG.OF;
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
