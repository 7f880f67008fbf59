// The recorded call chain, against what the guest itself knows it has called: by recursion, through tail calls,
// by returns to slots that were replaced, on two stacks, on two vCPUs.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { parseHexBytes } from "../../src/base/bytes.ts";
import type { CallFrame } from "../../src/machine/callChain.ts";
import { DATA, type Guest, makeGuest, RW, restart, STACK_TOP, TEXT } from "./guest.ts";

const at = (bytes: number) => offset(TEXT, bytes);

/** Where rsp is when nothing has been called: within the stack, so that whatever were left of it would show. */
const TOP = offset(STACK_TOP, -64);
const EMPTY = { rsp: TOP };

function makeRecorded(code: string, vcpus = 1): Guest {
  const guest = makeGuest(code, { recordCalls: true, vcpus });
  restart(guest, EMPTY);
  return guest;
}

/** The calls that have not returned, innermost first: nothing here is interrupted. */
function frames({ machine, vcpu }: Guest, rsp: Addr = vcpu.rsp): CallFrame[] {
  return machine.trueStack(rsp).map((frame) => (frame.kind === "call" ? frame : expect.fail(frame.kind)));
}

/** Their offsets in text. */
function chain(guest: Guest, rsp?: Addr): number[] {
  return frames(guest, rsp).map(({ call }) => call! - TEXT);
}

/** Steps to the end and holds the record against `expected`, the calls by offset, at every boundary. */
function follow(guest: Guest, calls: Record<number, number>, returns: readonly number[]): number {
  const expected: number[] = [];
  for (let n = 0; ; n++) {
    const ip = guest.vcpu.rip - TEXT;
    const exit = guest.vcpu.step();
    if (exit !== undefined) return n;
    if (calls[ip] !== undefined) {
      expected.unshift(ip);
      const returnAddress = at(ip + calls[ip]!);
      expect(frames(guest)[0]).toEqual({ kind: "call", call: at(ip), slot: guest.vcpu.rsp, returnAddress });
    }
    if (returns.includes(ip)) expected.shift();
    expect(chain(guest)).toEqual(expected);
  }
}

// 0: call 8; vmcall; 8: test %rcx,%rcx; je 15; dec %rcx; call 8 (at 10); 15: ret
const RECURSION = "e8 03 00 00 00 0f 01 c1 48 85 c9 74 08 48 ff c9 e8 f3 ff ff ff c3";

describe("recursion", () => {
  test("is followed at every boundary", () => {
    const guest = makeRecorded(RECURSION);
    restart(guest, { ...EMPTY, rcx: 20 });
    expect(follow(guest, { 0: 5, 16: 5 }, [21])).toBe(1 + 20 * 5 + 3);
    expect(chain(guest)).toEqual([]);
  });

  test.each([10, 1000])("%i deep in one run is there when it stops, hot or cold", (depth) => {
    const guest = makeRecorded(RECURSION);
    for (let n = 0; n < 3; n++) {
      restart(guest, { ...EMPTY, rcx: depth });
      // 4 instructions a level: stop within the innermost.
      expect(guest.vcpu.run({ budget: 1 + 4 * depth + 2 }).kind).toBe("budget");
      expect(frames(guest).map(({ slot }) => slot)).toEqual(
        Array.from({ length: depth + 1 }, (_, k) => TOP - 8 * (depth + 1 - k)),
      );
      expect(chain(guest)).toEqual([...new Array(depth).fill(16), 0]);
      expect(guest.vcpu.run().kind).toBe("hypercall");
      expect(chain(guest)).toEqual([]);
    }
    expect(guest.machine.regions.activeCount > 0).toBe(depth === 1000);
  });
});

test("ret imm releases arguments, and tail calls keep the caller's frame", () => {
  // 0: push; push; call 10; vmcall; 10: call 20; jmp 30; 20: ret; 30: jmp *%rdx (40); 40: ret 16
  const guest = makeRecorded("50 50 e8 09 00 00 00 0f 01 c1");
  const { memory } = guest.machine;
  memory.write(at(0x10), parseHexBytes("e8 0b 00 00 00 eb 19"));
  memory.write(at(0x20), parseHexBytes("c3"));
  memory.write(at(0x30), parseHexBytes("ff e2"));
  memory.write(at(0x40), parseHexBytes("c2 10 00"));
  restart(guest, { ...EMPTY, rdx: at(0x40) });
  follow(guest, { 2: 5, 16: 5 }, [0x20, 0x40]);
  expect(guest.vcpu.rsp).toBe(TOP);
});

describe("a return trampoline", () => {
  // 0: call 10; vmcall. 10: mov (%rsp),%rbx; lea 5(%rip),%rax (to 20); mov %rax,(%rsp); ret
  // 20: push %rbx; ret, as a handler that goes back to the real caller
  const code =
    "e8 0b 00 00 00 0f 01 c1 90 90 90 90 90 90 90 90 48 8b 1c 24 48 8d 05 05 00 00 00 48 89 04 24 c3 53 c3";

  test("leaves the real calls on record while slots are replaced and pushed", () => {
    const guest = makeRecorded(code);
    const seen: [number, number[]][] = [];
    for (let n = 0; n < 7; n++) {
      expect(guest.vcpu.step()).toBeUndefined();
      seen.push([guest.vcpu.rip - TEXT, chain(guest)]);
    }
    expect(seen).toEqual([
      [16, [0]],
      [20, [0]],
      [27, [0]],
      [31, [0]],
      [32, []],
      [33, []],
      [5, []],
    ]);
    expect(guest.vcpu.step()).toMatchObject({ kind: "hypercall" });
  });

  test("the frame keeps the address that the call pushed", () => {
    const guest = makeRecorded(code);
    for (let n = 0; n < 4; n++) guest.vcpu.step();
    expect(guest.machine.memory.readWord(guest.vcpu.rsp)).not.toBe(BigInt.asUintN(64, BigInt(at(5))));
    expect(frames(guest)[0]?.returnAddress).toBe(at(5));
  });
});

test("push and ret to a function is no call, and takes no frame away", () => {
  // 0: call 10; vmcall; 10: push %rdx; ret (to 20); 20: ret
  const guest = makeRecorded("e8 0b 00 00 00 0f 01 c1 90 90 90 90 90 90 90 90 52 c3");
  guest.machine.memory.write(at(0x20), parseHexBytes("c3"));
  restart(guest, { ...EMPTY, rdx: at(0x20) });
  const chains = Array.from({ length: 4 }, () => {
    guest.vcpu.step();
    return chain(guest);
  });
  expect(chains).toEqual([[0], [0], [0], []]);
});

test("a frame left behind by a jump out of several is gone at the next call above it", () => {
  // 0: mov %rsp,%rbx; call 10; 8: call 20; vmcall; 10: call 18; 18: mov %rbx,%rsp; jmp *%rdx (to 8); 20: ret
  const guest = makeRecorded(
    "48 89 e3 e8 08 00 00 00 e8 13 00 00 00 0f 01 c1 e8 03 00 00 00 90 90 90 48 89 dc ff e2 90 90 90 c3",
  );
  restart(guest, { ...EMPTY, rdx: at(8) });
  const chains = Array.from({ length: 7 }, () => {
    guest.vcpu.step();
    return chain(guest);
  });
  expect(chains).toEqual([[], [3], [16, 3], [], [], [8], []]);
});

test("two stacks, switched by rsp, have a chain each", () => {
  const other = addr(0xffff_c900_0001_0000n);
  // 0: call 8; vmcall; 8: call 16 (at 8); ret; 16: xchg %rsp,(%rbx); ret
  const guest = makeGuest("e8 03 00 00 00 0f 01 c1 e8 09 00 00 00 c3 90 90 90 90 90 90 90 90 48 87 23 c3", {
    recordCalls: true,
  });
  const { machine, vcpu } = guest;
  machine.memory.map(other, 4 * PAGE_SIZE, RW);
  const otherTop = offset(other, 4 * PAGE_SIZE - 64);
  machine.memory.writeWord(otherTop, BigInt.asUintN(64, BigInt(TEXT))); // a new task starts at 0
  restart(guest, { ...EMPTY, rbx: DATA });
  machine.memory.writeWord(DATA, BigInt.asUintN(64, BigInt(otherTop)));
  for (let n = 0; n < 3; n++) vcpu.step(); // call, call, switch
  const firstRsp = offset(TOP, -16);
  expect([vcpu.rsp, chain(guest), chain(guest, firstRsp)]).toEqual([otherTop, [], [8, 0]]);
  for (let n = 0; n < 3; n++) vcpu.step(); // ret into the new task, call, call
  expect([chain(guest), chain(guest, firstRsp)]).toEqual([
    [8, 0],
    [8, 0],
  ]);
  const otherRsp = vcpu.rsp;
  vcpu.step(); // and back
  expect([vcpu.rsp, chain(guest)]).toEqual([firstRsp, [8, 0]]);
  expect(vcpu.run().kind).toBe("hypercall");
  expect([chain(guest), chain(guest, otherRsp)]).toEqual([[], [8, 0]]);
  machine.calls.forget(otherRsp);
  expect(chain(guest, otherRsp)).toEqual([]);
});

test("a stack that moves from one vCPU to another while both are stepped keeps its order", () => {
  // 0: call 8; vmcall; 8: ret
  const guest = makeRecorded("e8 03 00 00 00 0f 01 c1 c3", 2);
  const { machine } = guest;
  const [first, second] = [machine.vcpus[0]!, machine.vcpus[1]!];
  second.rip = TEXT;
  second.rsp = TOP;
  second.step(); // the second calls
  first.rip = second.rip;
  first.rsp = second.rsp;
  expect(first.step()).toBeUndefined(); // the first returns
  expect(machine.trueStack(offset(TOP, -64))).toEqual([]);
});

// What the record cannot see: the slot of an abandoned frame that rsp has passed twice without a call above it.
test("a return address that was popped as data is no frame any more when the stack grows again", () => {
  // 0: call 8; vmcall; 8: pop %rbx; push %rax; push %rax
  const guest = makeRecorded("e8 03 00 00 00 0f 01 c1 5b 50 50");
  for (let n = 0; n < 4; n++) guest.vcpu.step();
  expect(chain(guest)).toEqual([]);
});

test("recording can be switched on and off, and nothing is recorded while it is off", () => {
  const guest = makeGuest(RECURSION);
  const deep = () => {
    restart(guest, { ...EMPTY, rcx: 500 });
    guest.vcpu.run({ budget: 1 + 4 * 500 });
    return chain(guest).length;
  };
  expect(deep()).toBe(0);
  guest.machine.recordCalls = true;
  expect(deep()).toBe(501);
  guest.machine.calls.forget(offset(TOP, -8));
  guest.machine.recordCalls = false;
  expect(deep()).toBe(0);
  guest.machine.recordCalls = true;
  expect(deep()).toBe(501);
});
