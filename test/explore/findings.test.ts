// What is kept of the walks of an audit: counts by verdict, and one example for each place.

import { describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import { type Example, Findings, MODES, type Outcome } from "../../src/explore/findings.ts";
import { isRight, type Sites, whereTo } from "../../src/explore/truth.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import type { Walk } from "../../src/unwind/walk.ts";

const AT = addr(0xffffffff81000000n);
const at = (n: number) => addr(AT + n);

describe("findings", () => {
  const outcome = (reliable: boolean, right: boolean, declared = false): Outcome => ({
    reliable,
    right,
    declared,
  });
  const example = (workload: string): Example => ({ workload, walk: { frames: [], doubt: null }, truth: [] });
  const unused = () => expect.fail("nothing is to be kept of that");

  test("count every walk by what it claimed and what was so", () => {
    const findings = new Findings();
    for (let n = 0; n < 4; n++) findings.add("atRest", AT, outcome(true, true), unused);
    for (let n = 0; n < 3; n++) findings.add("nmi", AT, outcome(true, false), () => example("a"));
    for (let n = 0; n < 2; n++) findings.add("nmi", AT, outcome(false, true), () => example("a"));
    findings.add("sleeping", AT, outcome(false, false), () => example("a"));
    const none = { reliableRight: 0, reliableWrong: 0, unreliableRight: 0, unreliableWrong: 0 };
    expect(findings.verdicts).toEqual({
      atRest: { ...none, reliableRight: 4 },
      preempted: none,
      nmi: { ...none, reliableWrong: 3, unreliableRight: 2 },
      sleeping: { ...none, unreliableWrong: 1 },
    });
    expect(findings.total).toEqual({
      reliableRight: 4,
      reliableWrong: 3,
      unreliableRight: 2,
      unreliableWrong: 1,
    });
  });

  test("keep the first example of each mode, verdict and address, and how many there were", () => {
    const findings = new Findings();
    findings.add("preempted", at(8), outcome(true, false, true), () => example("first"));
    findings.add("preempted", at(8), outcome(true, false, true), unused);
    findings.add("preempted", at(8), outcome(false, false), () => example("of another verdict"));
    findings.add("preempted", at(2), outcome(true, false), () => example("of another place"));
    findings.add("atRest", at(8), outcome(true, false), () => example("of another mode"));
    expect(
      findings.places.map(({ mode, cell, count, at, declared, example }) => ({
        mode,
        cell,
        count,
        at,
        declared,
        of: example.workload,
      })),
    ).toEqual([
      { mode: "atRest", cell: "reliableWrong", count: 1, at: at(8), declared: false, of: "of another mode" },
      {
        mode: "preempted",
        cell: "reliableWrong",
        count: 1,
        at: at(2),
        declared: false,
        of: "of another place",
      },
      { mode: "preempted", cell: "reliableWrong", count: 2, at: at(8), declared: true, of: "first" },
      {
        mode: "preempted",
        cell: "unreliableWrong",
        count: 1,
        at: at(8),
        declared: false,
        of: "of another verdict",
      },
    ]);
  });

  test("know the boundaries that were passed, and where instructions were reached", () => {
    const findings = new Findings();
    for (const n of [1, 2, 1]) findings.visit(at(n));
    expect([findings.boundaries, [...findings.reached]]).toEqual([3, [at(1), at(2)]]);
    expect(Object.keys(findings.verdicts)).toEqual([...MODES]);
  });
});

describe("a walk is right", () => {
  const SLOT = addr(0xffffc90000003f00n);
  const slot = (n: number) => addr(SLOT + 8 * n);
  const call = (n: number, from = 100): TrueFrame => ({
    kind: "call",
    call: at(from),
    slot: slot(n),
    returnAddress: at(n),
  });
  const interrupt: TrueFrame = {
    kind: "interrupt",
    vector: 236,
    ip: at(50),
    slot: slot(3),
    rsp: slot(8),
    user: false,
  };
  const words = new Map<Addr, Addr>([
    [slot(3), at(50)],
    [slot(5), at(77)],
  ]);
  const sites: Sites = { isSite: (from) => from === at(200), read: (from) => words.get(from) };
  const walk = (...frames: [n: number, slot: Addr][]): Walk => ({
    frames: frames.map(([n, slot]) => ({ kind: "return", address: at(n), slot })),
    doubt: null,
  });

  test("if it has every frame, where it lies and where it goes", () => {
    const truth = [call(1), interrupt, call(5)];
    expect(isRight(walk([1, slot(1)], [50, slot(3)], [5, slot(5)]), truth, slot(0), sites)).toBe(true);
    expect(isRight(walk(), [], slot(0), sites)).toBe(true);
    for (const other of [
      walk([1, slot(1)], [50, slot(3)]),
      walk([1, slot(1)], [5, slot(5)]),
      walk([1, slot(1)], [50, slot(3)], [5, slot(5)], [9, slot(9)]),
      walk([50, slot(3)], [1, slot(1)], [5, slot(5)]),
      walk([1, slot(1)], [51, slot(3)], [5, slot(5)]),
      walk([1, slot(1)], [50, slot(3)], [6, slot(5)]),
      walk([1, slot(1)], [50, slot(3)], [5, slot(6)]),
      walk(),
    ])
      expect(isRight(other, truth, slot(0), sites)).toBe(false);
  });

  test("with a copy of a return address further in on the same stack, and of nothing else", () => {
    expect(isRight(walk([5, slot(4)]), [call(5)], slot(0), sites)).toBe(true);
    expect(isRight(walk([5, addr(SLOT - 0x10000)]), [call(5)], slot(0), sites)).toBe(false);
    expect(isRight(walk([50, slot(2)]), [interrupt], slot(0), sites)).toBe(false);
  });

  test("of a breakpoint in the kernel if it names the frame that its entry code has moved, once that is whole", () => {
    const breakpoint = { ...interrupt, vector: 3, slot: slot(13) };
    words.set(slot(7), at(60)).set(slot(13), at(50));
    expect(isRight(walk([50, slot(13)]), [breakpoint], slot(8), sites)).toBe(true);
    expect(isRight(walk([60, slot(7)]), [breakpoint], slot(7), sites)).toBe(true);
    expect(isRight(walk([50, slot(13)]), [breakpoint], slot(7), sites)).toBe(false);
    expect(isRight(walk([60, slot(7)]), [call(6), breakpoint], slot(1), sites)).toBe(false);
  });

  test("behind a call site if it says where that one's handler goes on; an exception's handler likewise", () => {
    expect(whereTo(call(5, 200), sites)).toBe(at(77));
    expect(whereTo(call(5, 201), sites)).toBe(at(5));
    expect(whereTo({ kind: "call", call: undefined, slot: slot(5), returnAddress: at(5) }, sites)).toBe(
      at(5),
    );
    expect(whereTo({ ...interrupt, ip: at(49) }, sites)).toBe(at(50));
    expect(whereTo({ ...interrupt, slot: slot(4) }, sites)).toBeUndefined();
  });
});
