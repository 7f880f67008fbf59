// harness.S as a program of this host.

import { nativeProgram } from "../../src/reference/nativeProgram.ts";

/** Cases must not touch it there. */
const ADDRESS = 0x40_0000n;

/** The executable file. */
export function harnessProgram(): Promise<Uint8Array> {
  return nativeProgram("test/native/harness.S", ADDRESS);
}
