// The rules of the record of calls one by one, told to it as the machine tells it: what no kernel of the other tests does.

import { describe, expect, test } from "vitest";
import { type Addr, addr, offset } from "../../src/base/addr.ts";
import type { InterruptFrame } from "../../src/machine/callChain.ts";
import { CallRecord, STACK_SIZE } from "../../src/machine/callRecord.ts";
import { DATA, makeGuest, restart, STACK_TOP, TEXT } from "./guest.ts";

const BASE = addr(0xffff_c900_0000_0000n);
/** One past the highest address of stack `n`. */
const top = (n: number): Addr => offset(BASE, (n + 1) * STACK_SIZE);
const USER_TOP = addr(0x7fff_0000_4000);
/** Return addresses, by which frames are known here. */
const code = (n: number): Addr => offset(TEXT, n);

const interrupted = (rsp: Addr, slot: Addr, more: Partial<InterruptFrame> = {}): InterruptFrame => ({
  kind: "interrupt",
  vector: 50,
  ip: code(0),
  slot,
  rsp,
  user: false,
  ...more,
});

/** The frames across stacks: return addresses and vectors. */
function chain(record: CallRecord, rsp: Addr): (number | string)[] {
  return record
    .across(rsp)
    .map((frame) => (frame.kind === "call" ? frame.returnAddress - TEXT : `#${frame.vector}`));
}

function onStack(record: CallRecord, rsp: Addr): (number | string)[] {
  return record
    .onStack(rsp)
    .map((frame) => (frame.kind === "call" ? frame.returnAddress - TEXT : `#${frame.vector}`));
}

describe("an interrupt stack of the hardware", () => {
  const inner = offset(top(1), -200);
  const [slot, kept] = [offset(top(1), -40), offset(top(0), -100)];

  /** A task with a call, interrupted; the handler with a call, interrupted on the same stack: from its top again. */
  function nested(): CallRecord {
    const record = new CallRecord();
    record.plant(kept, code(1));
    record.interrupt(interrupted(kept, slot, { vector: 2 }));
    record.plant(inner, code(2));
    record.interrupt(interrupted(inner, slot, { vector: 2 }));
    record.plant(offset(slot, -100), code(3));
    return record;
  }

  test("that is entered twice keeps what the second interrupt suspends, though it lies below", () => {
    const record = nested();
    expect(chain(record, offset(slot, -100))).toEqual([3, "#2", 2, "#2", 1]);
    expect(onStack(record, offset(slot, -100))).toEqual([3, "#2", 2, "#2"]);
    record.farReturn(slot, inner, false);
    expect(chain(record, inner)).toEqual([2, "#2", 1]);
    record.farReturn(slot, kept, false);
    expect([chain(record, kept), onStack(record, inner)]).toEqual([[1], []]);
  });

  test("left by a copy of the frame is empty afterwards", () => {
    const record = nested();
    record.farReturn(offset(slot, -60), inner, false);
    expect(chain(record, inner)).toEqual([2, "#2", 1]);
    record.farReturn(offset(inner, 8), kept, false);
    expect([chain(record, kept), onStack(record, offset(top(1), -300))]).toEqual([[1], []]);
  });

  test("left by a copy of the frame that was changed, too", () => {
    const record = nested();
    record.farReturn(slot, inner, false);
    record.farReturn(offset(inner, 8), offset(kept, 8), false); // the handler has popped a return address
    expect([chain(record, offset(kept, 8)), onStack(record, offset(top(1), -300))]).toEqual([[], []]);
  });

  test("left for another place than was interrupted", () => {
    const record = nested();
    record.farReturn(slot, offset(inner, 8), false); // the handler has popped a return address
    expect(chain(record, offset(inner, 8))).toEqual(["#2", 1]);
    record.plant(offset(top(3), -64), code(9));
    record.farReturn(slot, offset(top(3), -64), false); // and it has switched tasks
    expect(chain(record, offset(top(3), -64))).toEqual([9]);
    expect([chain(record, kept), onStack(record, inner)]).toEqual([[1], []]);
  });
});

test("a breakpoint's handler may emulate a call, by another stack too", () => {
  for (const slot of [offset(top(0), -200), offset(top(1), -40)]) {
    const record = new CallRecord();
    const rsp = offset(top(0), -120);
    record.interrupt(interrupted(rsp, slot, { vector: 3, ip: code(0x11) }));
    record.farReturn(slot, offset(rsp, -8), false);
    expect(record.across(offset(rsp, -8))).toEqual([
      { kind: "call", call: code(0x10), slot: offset(rsp, -8), returnAddress: code(0x15) },
    ]);
  }
});

describe("switches by rsp", () => {
  const [first, second] = [offset(top(0), -64), offset(top(1), -64)];

  test("to a new task that was announced: a beginning; else whoever switches seems to have moved", () => {
    for (const announced of [true, false]) {
      const record = new CallRecord();
      record.plant(first, code(1));
      if (announced) record.forget(offset(top(1), -1));
      record.move(first, second);
      record.plant(second, code(2));
      expect(chain(record, second)).toEqual(announced ? [2] : [2, 1]);
      record.move(second, first);
      expect([chain(record, first), chain(record, second)]).toEqual([[1], announced ? [2] : [2, 1]]);
    }
  });

  test("between two tasks none of which has called anything", () => {
    const record = new CallRecord();
    record.forget(offset(top(1), -1));
    record.move(first, second);
    record.plant(offset(second, -8), code(1));
    record.move(offset(second, -8), first);
    expect(chain(record, first)).toEqual([]);
  });

  test("by iretq leave the frames that were there", () => {
    const record = new CallRecord();
    record.plant(first, code(1));
    record.plant(second, code(2));
    record.farReturn(offset(first, -40), second, false);
    expect([chain(record, second), chain(record, first)]).toEqual([[2], [1]]);
  });

  test("to and fro with nothing called do not add up", () => {
    const record = new CallRecord();
    record.plant(first, code(1));
    record.move(first, second);
    for (let n = 0; n < 100; n++) {
      record.move(second, top(2));
      record.move(top(2), second);
    }
    let links = 0;
    for (
      let link = record.get(Math.floor((second - 1) / STACK_SIZE) * STACK_SIZE + 1);
      link;
      link = link.outer
    )
      links++;
    expect([chain(record, second), links]).toEqual([[1], 2]); // the move, the call
  });

  test("back to where what runs came from, past the frames there, is no move", () => {
    const record = new CallRecord();
    record.plant(first, code(1));
    record.move(first, second);
    record.plant(offset(second, -8), code(2));
    record.move(offset(second, -8), offset(first, 8)); // out of everything
    expect(chain(record, offset(first, 8))).toEqual([]);
  });

  test("to a stack that is full to its highest address, and from one that is empty", () => {
    const record = new CallRecord();
    record.plant(offset(top(0), -8), code(1));
    record.move(offset(top(0), -8), top(1));
    expect(chain(record, top(1))).toEqual([1]);
    record.move(top(1), offset(top(0), -8));
    expect(chain(record, offset(top(0), -8))).toEqual([1]);
  });
});

describe("user mode", () => {
  const user = offset(USER_TOP, -80);

  test("left by a system call: the kernel's chain ends there, on whatever stack", () => {
    const record = new CallRecord();
    record.plant(offset(user, 8), code(7));
    record.enter(user);
    expect([chain(record, user), onStack(record, user)]).toEqual([[], [7]]);
    record.forget(offset(top(0), -8)); // the stack of a task that began in the kernel
    record.move(user, top(0));
    record.plant(offset(top(0), -8), code(1));
    expect(chain(record, offset(top(0), -8))).toEqual([1]);
    record.interrupt(interrupted(offset(top(0), -8), offset(top(1), -40)));
    expect(chain(record, offset(top(1), -40))).toEqual(["#50", 1]);
    record.farReturn(offset(top(1), -40), offset(top(0), -8), false);
    record.move(top(0), user);
    expect(chain(record, user)).toEqual([]);
    record.leave(user);
    expect(chain(record, user)).toEqual([7]);
  });

  test("left by an interrupt, and gone back to by a copy of its frame", () => {
    const record = new CallRecord();
    record.interrupt(interrupted(user, offset(top(0), -40), { user: true }));
    record.plant(offset(top(0), -80), code(1));
    expect(chain(record, offset(top(0), -80))).toEqual([1, "#50"]);
    record.farReturn(offset(top(0), -200), user, true);
    expect([chain(record, user), onStack(record, offset(top(0), -300))]).toEqual([[], []]);
  });

  test("entered for the first time, by frames that others have left alone", () => {
    const record = new CallRecord();
    record.forget(offset(top(0), -8));
    record.plant(offset(top(0), -8), code(1));
    record.farReturn(offset(top(0), -100), user, true);
    expect([chain(record, user), chain(record, offset(top(0), -8))]).toEqual([[], [1]]);
  });

  test("a signal's frame: back with another rsp", () => {
    const record = new CallRecord();
    record.plant(offset(user, 8), code(7));
    record.enter(user);
    record.move(user, top(0));
    record.move(top(0), offset(user, -200));
    record.leave(offset(user, -200));
    expect(chain(record, offset(user, -200))).toEqual([7]);
  });
});

describe("stacks of other sizes", () => {
  test("are told apart once they are added", () => {
    const record = new CallRecord();
    const page = (n: number) => offset(BASE, 4096 * n);
    for (const n of [0, 1]) record.addStack(page(n), page(n + 1));
    record.addStack(page(8), page(16)); // two areas
    record.plant(offset(page(1), -8), code(1));
    record.plant(offset(page(2), -8), code(2));
    expect([0, 1].map((n) => onStack(record, offset(page(n), 8)))).toEqual([[1], [2]]);
    record.plant(offset(page(16), -8), code(3));
    record.plant(offset(page(9), 0), code(4));
    expect(onStack(record, offset(page(8), 8))).toEqual([4, 3]);
    record.move(offset(page(9), 0), offset(page(16), -8));
    expect(onStack(record, offset(page(8), 8))).toEqual([3]);
  });

  test.each([
    ["not whole pages", 0, 0x800],
    ["empty", 0x2000, 0x2000],
    ["added before", 0x1000, 0x3000],
  ])("%s: refused", (_, low, high) => {
    const record = new CallRecord();
    record.addStack(offset(BASE, 0x2000), offset(BASE, 0x6000));
    expect(() => record.addStack(offset(BASE, low), offset(BASE, high))).toThrow(/is no new stack/);
  });
});

test.each([false, true])("popf that takes a return address, done in TypeScript: %s", (waiting) => {
  const guest = makeGuest("e8 00 00 00 00 9d", { recordCalls: true }); // 0: call 5; popfq
  restart(guest, { rsp: STACK_TOP - 64 });
  if (waiting) guest.vcpu.interrupt(50); // which popf could let in
  const depths = [0, 1].map(() => {
    guest.vcpu.step();
    return guest.machine.trueStack(offset(STACK_TOP, -512)).length;
  });
  expect([guest.vcpu.rsp, depths]).toEqual([STACK_TOP - 64, [1, 0]]);
});

test("rsp as a second operand that is written", () => {
  // 0: call 5; lea 8(%rsp),%rax; xchg %rsp,%rax, in both forms
  const cases = ["e8 00 00 00 00 48 8d 44 24 08 48 87 e0", "e8 00 00 00 00 48 8d 44 24 08 48 94"];
  for (const bytes of cases) {
    const guest = makeGuest(bytes, { recordCalls: true });
    restart(guest, { rsp: STACK_TOP - 64, rbx: DATA });
    const depths = [0, 1, 2].map(() => {
      guest.vcpu.step();
      return guest.machine.trueStack(offset(STACK_TOP, -512)).length;
    });
    expect([guest.vcpu.rsp, depths]).toEqual([STACK_TOP - 64, [1, 1, 0]]);
  }
  // xadd %rsp,%rbx: rsp is what rbx was
  const guest = makeGuest("e8 00 00 00 00 48 0f c1 e3", { recordCalls: true });
  restart(guest, { rsp: STACK_TOP - 64, rbx: STACK_TOP - 64 });
  guest.vcpu.step();
  expect(guest.machine.trueStack(offset(STACK_TOP, -512)).length).toBe(1);
  guest.vcpu.step();
  expect([guest.vcpu.rsp, guest.machine.trueStack(offset(STACK_TOP, -512)).length]).toEqual([
    STACK_TOP - 64,
    0,
  ]);
});
