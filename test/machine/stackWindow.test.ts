// Blocks that use the stack more than once: compiled code checks their whole range at once where it can. At
// every distance from a page boundary, and from a page that cannot be accessed, it must do what steps do.

import { describe, expect, test } from "vitest";
import { type Addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Exit } from "../../src/machine/exit.ts";
import type { Access } from "../../src/machine/memory.ts";
import {
  counted,
  type Guest,
  loopOf,
  makeGuest,
  RO,
  RW,
  STACK,
  setRegisters,
  stateOf,
  TEXT,
} from "./guest.ts";

/** push %rax; push %rdx; mov 8(%rsp),%rsi; add %rsi,(%rsp); pushfq; pop %rdi; mov %rdi,-16(%rsp); pop %rdx; pop %rax. */
const WRITES = "50 52 48 8b 74 24 08 48 01 34 24 9c 5f 48 89 7c 24 f0 5a 58";
/** add (%rsp),%rax; add 8(%rsp),%rdx; xor 24(%rsp),%rax. */
const READS = "48 03 04 24 48 03 54 24 08 48 33 44 24 18";
/** push %rax; sub $16,%rsp; mov %rax,(%rsp); and $-32,%rsp; push %rdx; mov 8(%rsp),%rdx; lea 64(%rsp),%rsp; mov %rbp,%rsp. */
const MOVES = "50 48 83 ec 10 48 89 04 24 48 83 e4 e0 52 48 8b 54 24 08 48 8d 64 24 40 48 89 ec";

const BOUNDARY = offset(STACK, 2 * PAGE_SIZE);
const ITERATIONS = 40;

function begin(guest: Guest, rsp: Addr): void {
  setRegisters(guest, { rax: 0x1234_5678n, rdx: 77, rcx: ITERATIONS, rsp, rbp: rsp });
  const words = BigUint64Array.from({ length: 64 }, (_, n) => BigInt(n) * 0x0101_0203n);
  guest.machine.memory.write(offset(BOUNDARY, -256), new Uint8Array(words.buffer));
}

function stepToEnd({ vcpu }: Guest): Exit {
  for (;;) {
    const exit = vcpu.step();
    if (exit !== undefined) return exit;
  }
}

function makeHot(body: string): Guest {
  const guest = makeGuest(loopOf(body));
  const { memory } = guest.machine;
  // The frames change places: neighbours in the guest are then none in the host.
  const pages = [offset(BOUNDARY, -PAGE_SIZE), BOUNDARY];
  for (const page of pages) memory.unmap(page, PAGE_SIZE);
  for (const page of pages) memory.map(page, PAGE_SIZE, RW);
  for (let n = 0; n < 10; n++) {
    begin(guest, offset(BOUNDARY, 512));
    expect(guest.vcpu.run().kind).toBe("hypercall");
  }
  expect(guest.machine.regions.find(TEXT)).toBeDefined();
  return guest;
}

describe.each([
  ["that writes", WRITES],
  ["that only reads", READS],
  ["that moves rsp about", MOVES],
])("a block %s", (_, body) => {
  const stepped = makeGuest(loopOf(body));

  function compare(ran: Guest, rsp: Addr): Exit {
    begin(stepped, rsp);
    begin(ran, rsp);
    const { result: expected, instructions } = counted(stepped, () => stepToEnd(stepped));
    expect(counted(ran, () => ran.vcpu.run())).toEqual({ result: expected, instructions });
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    const around = ({ machine }: Guest) => machine.memory.read(offset(BOUNDARY, -256), 512);
    expect(around(ran)).toEqual(around(stepped));
    return expected;
  }

  test("across two pages", () => {
    const ran = makeHot(body);
    for (let from = -72; from <= 72; from++)
      expect(compare(ran, offset(BOUNDARY, from)).kind).toBe("hypercall");
  });

  test.each<[string, Access]>([
    ["read-only", RO],
    ["writable again", RW],
  ])("below a page that became %s", (_, access) => {
    const ran = makeHot(body);
    for (const { machine } of [ran, stepped]) machine.memory.protect(BOUNDARY, PAGE_SIZE, access);
    const exits = [];
    for (let from = -72; from <= 72; from++) exits.push(compare(ran, offset(BOUNDARY, from)).kind);
    expect(exits.includes("fault")).toBe(access === RO && body !== READS);
  });

  test("above a page that was replaced by a read-only one", () => {
    const ran = makeHot(body);
    const [below, size] = [offset(BOUNDARY, -PAGE_SIZE), PAGE_SIZE];
    for (const { machine } of [ran, stepped]) {
      machine.memory.unmap(below, size);
      machine.memory.map(below, size, RO);
    }
    for (let from = -72; from <= 72; from++) compare(ran, offset(BOUNDARY, from));
    for (const { machine } of [ran, stepped]) machine.memory.protect(below, size, RW);
    expect(compare(ran, offset(BOUNDARY, -64)).kind).toBe("hypercall");
  });
});
