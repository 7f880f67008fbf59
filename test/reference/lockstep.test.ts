// That lockstep finds what is wrong, at the instruction that is wrong, says what it was, and nothing else; against
// either reference. The engine is made wrong from outside, at chosen instructions.

import { afterAll, beforeEach, describe, expect, test } from "vitest";
import { addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { HostReference } from "../../src/reference/host.ts";
import type { Difference } from "../../src/reference/lockstep.ts";
import type { Reference } from "../../src/reference/reference.ts";
import {
  DATA,
  follow,
  type LowGuest,
  lowGuest,
  openReferences,
  STACK_TOP,
  spoilAfter,
  TEXT,
} from "./guest.ts";

const references = await openReferences();
afterAll(() => {
  for (const reference of references.values()) if (!("missing" in reference)) reference.close();
});

/** Long enough that what comes before and behind is of the same stretch, and the loop of several. */
const SOURCE = `
        mov $700, %ecx
again:  mov %rcx, (%rsi)
        add %rcx, %rax
        push %rax
        xor (%rsi), %rdx
        pop %rbx
        dec %ecx
        jnz again
last:   mov %rdx, 8(%rsi)
`;
const STEPS = 1 + 700 * 7 + 1;

describe.each(["unicorn", "host"])("against %s", (name) => {
  const opened = references.get(name)!;
  beforeEach((ctx) => {
    if ("missing" in opened) ctx.skip(opened.missing);
  });
  const reference = opened as Reference;

  /** What is found in SOURCE when `spoil` is done after the instruction at `label` for the `nth` time. */
  async function found(
    label: string,
    skip: number,
    spoil: (guest: LowGuest) => void,
    when: (guest: LowGuest) => boolean = () => true,
  ): Promise<{ guest: LowGuest; difference: Difference; steps: number; agreed: number }> {
    const guest = await lowGuest(SOURCE);
    const at = offset(guest.at(label), skip);
    spoilAfter(guest, at, () => {
      if (when(guest)) spoil(guest);
    });
    const { difference, ended, steps, agreed, notJudged, referenceFaults } = await follow(guest, reference);
    expect(ended).toEqual({ kind: "difference" });
    expect([notJudged.size, referenceFaults.size]).toEqual([0, 0]);
    return { guest, difference: difference!, steps, agreed };
  }

  /** In the loop's round with %ecx at 300, from its start on. */
  const ROUND = 1 + (700 - 300) * 7;
  const inRound = ({ vcpu }: LowGuest) => vcpu.getNumber("rcx") === 300;

  test("nothing is found where nothing is wrong", async () => {
    const guest = await lowGuest(SOURCE);
    const told: number[] = [];
    const result = await follow(guest, reference, { onProgress: (steps) => told.push(steps) });
    expect(result).toEqual({
      ...{ steps: STEPS, agreed: STEPS, notJudged: new Map(), referenceFaults: new Map() },
      ended: { kind: "reached" },
    });
    expect(guest.vcpu.get("rax")).toBe((700n * 701n) / 2n);
    expect(guest.vcpu.instructions).toBe(STEPS);
    expect(told.length).toBeGreaterThan(2);
    expect(told).toEqual(told.toSorted((a, b) => a - b));
  });

  test("a wrong register", async () => {
    // add %rcx, %rax is 3 bytes behind `again`
    const { guest, difference, steps, agreed } = await found(
      "again",
      3,
      ({ vcpu }) => vcpu.set("rax", vcpu.get("rax") ^ 0x10_0000_0000n),
      inRound,
    );
    expect(difference).toMatchObject({
      step: ROUND + 1,
      since: ROUND + 1,
      text: "add %rcx,%rax",
      fields: ["rax"],
    });
    expect([steps, agreed]).toEqual([ROUND + 1, ROUND + 1]);
    expect(difference.ip).toBe(offset(guest.at("again"), 3));
    expect([...difference.bytes]).toEqual([0x48, 0x01, 0xc8]);
    const { before, ours, theirs } = difference;
    const sum = (700n * 701n - 300n * 301n) / 2n;
    expect([before.rax, theirs.rax, ours.rax]).toEqual([sum, sum + 300n, (sum + 300n) ^ 0x10_0000_0000n]);
    expect([before.rcx, before.rip]).toEqual([300n, toWord(difference.ip)]);
    expect(theirs.rip).toBe(toWord(offset(difference.ip, 3)));
    expect({ ...ours, rax: 0n, rflags: 0n }).toEqual({ ...theirs, rax: 0n, rflags: 0n });
    expect(difference.memory).toEqual([]);
    // The machine stands behind it.
    expect([guest.vcpu.get("rax"), guest.vcpu.rip]).toEqual([ours.rax, offset(difference.ip, 3)]);
    expect(guest.vcpu.instructions).toBe(ROUND + 2);
  });

  test("a wrong flag, though nothing is made of it", async () => {
    const CARRY = 1n;
    const { difference } = await found(
      "again",
      3,
      ({ vcpu }) => {
        vcpu.rflags ^= CARRY;
      },
      inRound,
    );
    expect(difference).toMatchObject({ step: ROUND + 1, fields: ["CF"], memory: [] });
    expect(difference.ours.rflags & 0xffn).toBe((difference.theirs.rflags & 0xffn) ^ CARRY);
  });

  test("a wrong word in memory, though it is gone before anybody reads it", async () => {
    const { difference } = await found(
      "again",
      6, // the push
      ({ machine, vcpu }) => {
        const bytes = machine.memory.read(vcpu.rsp, 1);
        machine.memory.write(vcpu.rsp, Uint8Array.of(bytes[0]! ^ 0x80));
      },
      inRound,
    );
    const sum = (700n * 701n - 299n * 300n) / 2n;
    const theirs = Number(sum & 0xffn);
    expect(difference).toMatchObject({
      step: ROUND + 2,
      since: ROUND + 2,
      text: "push %rax",
      fields: ["memory"],
    });
    expect(difference.memory).toEqual([{ at: offset(STACK_TOP, -8), ours: theirs ^ 0x80, theirs }]);
    expect(difference.ours).toEqual(difference.theirs);
  });

  test("a stray write, which the instruction should not make at all", async () => {
    const stray = offset(DATA, PAGE_SIZE + 123);
    const { difference } = await found(
      "again",
      3,
      ({ machine }) => machine.memory.write(stray, Uint8Array.of(1)),
      inRound,
    );
    expect(difference).toMatchObject({
      step: ROUND + 1,
      since: ROUND + 1,
      text: "add %rcx,%rax",
      fields: ["memory"],
    });
    expect(difference.memory).toEqual([{ at: stray, ours: 1, theirs: 0 }]);
  });

  test("the way it goes", async () => {
    const { guest, difference } = await found(
      "again",
      0,
      ({ vcpu, at }) => {
        vcpu.rip = at("last");
      },
      inRound,
    );
    expect(difference).toMatchObject({ step: ROUND, fields: ["rip"] });
    expect([difference.ours.rip, difference.theirs.rip]).toEqual([
      toWord(guest.at("last")),
      toWord(offset(guest.at("again"), 3)),
    ]);
  });

  test("the first of two differences", async () => {
    const guest = await lowGuest(SOURCE);
    spoilAfter(guest, offset(guest.at("again"), 3), () => {
      const round = guest.vcpu.getNumber("rcx");
      if (round === 295) guest.vcpu.set("rdx", 7n);
      if (round === 300) guest.machine.memory.write(offset(DATA, 40), Uint8Array.of(9));
    });
    const { difference } = await follow(guest, reference);
    expect(difference).toMatchObject({ step: ROUND + 1, fields: ["memory"] });
  });

  test("a fault that is none, and the other way round", async () => {
    const ours = await lowGuest("mov $5, %eax\nmov %rax, (%rsi)\nnop\n");
    const step = ours.vcpu.step.bind(ours.vcpu);
    ours.vcpu.step = () =>
      ours.vcpu.rip === offset(TEXT, 5)
        ? { kind: "fault", ip: ours.vcpu.rip, fault: { vector: "#UD" } }
        : step();
    expect((await follow(ours, reference)).difference).toMatchObject({
      ...{ step: 1, fields: ["rip", "stop", "memory"] },
      stops: { ours: "#UD", theirs: undefined },
    });

    const theirs = await lowGuest("mov $5, %eax\nmov %rax, (%rdi)\nnop\n", { rdi: 0x1234_5000n });
    const really = theirs.vcpu.step.bind(theirs.vcpu);
    theirs.vcpu.step = () => {
      const exit = really();
      if (exit !== undefined) theirs.vcpu.rip = offset(TEXT, 8);
      return undefined;
    };
    const { difference } = await follow(theirs, reference);
    expect(difference).toMatchObject({ step: 1, fields: ["rip", "stop"], text: "mov %rax,(%rdi)" });
    expect(difference!.stops.ours).toBeUndefined();
    expect(difference!.stops.theirs).toMatch(/#PF: write|UC_ERR_WRITE_UNMAPPED/);
  });

  test("the wrong fault", async () => {
    const guest = await lowGuest("mov (%rdi), %rax\n", { rdi: 0x1234_5000n });
    const step = guest.vcpu.step.bind(guest.vcpu);
    guest.vcpu.step = () => {
      const exit = step();
      return exit?.kind === "fault" ? { ...exit, fault: { vector: "#UD" } } : exit;
    };
    expect((await follow(guest, reference)).difference).toMatchObject({ step: 0, fields: ["stop"] });
  });

  test("what does not happen twice is found as well, if less exactly", async () => {
    const once = (spoil: (guest: LowGuest) => void) => {
      let left = 1;
      return (guest: LowGuest) => {
        if (left-- > 0) spoil(guest);
      };
    };
    const register = await found(
      "again",
      3,
      once(({ vcpu }) => vcpu.set("r9", 1n)),
      inRound,
    );
    expect(register.difference).toMatchObject({ step: ROUND + 1, fields: ["r9"] });
    const stray = await found(
      "again",
      3,
      once(({ machine }) => machine.memory.write(offset(DATA, 99), Uint8Array.of(1))),
      inRound,
    );
    const { step, since, fields, memory } = stray.difference;
    expect([fields, memory]).toEqual([["memory"], [{ at: offset(DATA, 99), ours: 1, theirs: 0 }]]);
    expect(since).toBeLessThanOrEqual(ROUND + 1);
    expect(step).toBeGreaterThan(ROUND + 1);
  });

  test("a difference in the very first and the very last instruction", async () => {
    const [first, last] = [await lowGuest(SOURCE), await lowGuest(SOURCE)];
    spoilAfter(first, TEXT, () => first.vcpu.set("r15", 1n));
    expect((await follow(first, reference)).difference).toMatchObject({ step: 0, fields: ["r15"] });
    spoilAfter(last, last.at("last"), () => last.machine.memory.write(offset(DATA, 8), Uint8Array.of(0xee)));
    expect((await follow(last, reference)).difference).toMatchObject({ step: STEPS - 1, fields: ["memory"] });
  });

  test("what is made of undefined flags is no difference", async () => {
    // OF after a shift by 3, AF after and, all but CF and OF after mul
    const guest = await lowGuest(`
        mov $0x1234567, %eax
        shl $3, %eax
        seto %bl
        and %eax, %eax
        lahf
        mov %eax, (%rsi)
        mul %rax
        jp 1f
        nop
1:      setz %cl
`);
    expect(await follow(guest, reference)).toMatchObject({
      ended: { kind: "reached" },
      steps: expect.any(Number),
    });
  });

  test("an instruction that only this engine can execute is counted, and gone on from", async () => {
    const guest = await lowGuest(`
        mov $3, %ebx
1:      rdtsc
        mov %rax, %r8
        mov $0x80000000, %eax
        cpuid
        mov %rax, (%rsi)
        rdrand %rdx
        mov $1, %ecx
        .byte 0x66, 0x0f, 0xc8                  # bswap %ax
        mov $1, %ebx
        dec %ebx
        jnz 1b
`);
    const { steps, agreed, notJudged, ended } = await follow(guest, reference);
    expect(ended).toEqual({ kind: "reached" });
    expect(Object.fromEntries(notJudged)).toEqual({
      ...{ rdtsc: 1, cpuid: 1, rdrand: 1, "bswap with an undefined result": 1 },
    });
    expect([steps, agreed]).toEqual([12, 8]);
  });

  test("what a kernel's instruction changes here is taken over: bases, and memory that it writes", async () => {
    const guest = await lowGuest(
      `
        mov %rsi, %rax
        wrgsbase %rax
        mov $77, %gs:16
        sgdt 32(%rsi)
        mov 34(%rsi), %rdx
        mov 16(%rsi), %rcx
`.replace("mov $77,", "movq $77,"),
    );
    const { ended, notJudged } = await follow(guest, reference);
    expect(ended).toEqual({ kind: "reached" });
    expect(Object.fromEntries(notJudged)).toEqual({ wrgsbase: 1, sgdt: 1 });
    expect(guest.vcpu.get("rcx")).toBe(77n);
  });

  test("each iteration of a repeated string instruction is a step", async () => {
    const guest = await lowGuest(`
        mov %rsi, %rdi
        mov $100, %ecx
        mov $0x5a, %eax
        rep stosb
        mov %rsi, %rdi
        mov $101, %ecx
        repe scasb
        xor %ecx, %ecx
        rep movsq
        mov $20, %ecx
        lea 200(%rsi), %rdi
        lea 100(%rsi), %rsi
        std
        rep movsb
        cld
`);
    const result = await follow(guest, reference);
    expect(result).toMatchObject({ ended: { kind: "reached" }, agreed: 11 + 100 + 101 + 1 + 20 });
    expect(result.steps).toBe(guest.vcpu.instructions);
  });

  test("`limit` and `until` stop it where they say", async () => {
    const guest = await lowGuest(SOURCE);
    expect(await follow(guest, reference, { limit: 10 })).toMatchObject({
      steps: 10,
      ended: { kind: "limit" },
    });
    expect(guest.vcpu.instructions).toBe(10);
    const again = guest.at("again");
    expect(await follow(guest, reference, { until: again })).toMatchObject({ ended: { kind: "reached" } });
    expect([guest.vcpu.rip, guest.vcpu.instructions]).toEqual([again, 15]);
    // From there, it runs until it comes back.
    expect(await follow(guest, reference, { until: again })).toMatchObject({ steps: 7 });
    expect(await follow(guest, reference, { until: again, limit: 3 })).toMatchObject({
      steps: 3,
      ended: { kind: "limit" },
    });
  });

  test("code that writes itself, and a frame that shows twice", async () => {
    const guest = await lowGuest(`
        mov $3, %ecx
1:      incb value(%rip)
        .byte 0xb8                              # mov $value, %eax
value:  .long 5
        mov %eax, (%rdi)
        add (%rsi), %rbx
        dec %ecx
        jnz 1b
`);
    const alias = addr(0x2100_0000);
    guest.machine.memory.alias(alias, DATA, PAGE_SIZE, { write: true, execute: false, user: false });
    guest.vcpu.set("rdi", toWord(alias));
    expect(await follow(guest, reference)).toMatchObject({ ended: { kind: "reached" } });
    expect(guest.vcpu.get("rbx")).toBe(6n + 7n + 8n);
  });

  test("a fault of both is the end, where there is no handler", async () => {
    for (const [source, vector] of [
      ["nop\nud2\n", "#UD"],
      ["nop\nmov (%rdi), %eax\n", "#PF"],
      ["nop\nmov %rsi, (%rdx)\n", "#GP"],
      ["nop\ndiv %rdi\n", "#DE"],
      ["nop\njmp *%rsi\n", "#PF"],
      ["nop\nint3\n", "#BP"],
      ["nop\nmov %rdx, %rsp\npush %rax\n", "#SS"],
    ] as const) {
      const guest = await lowGuest(source, { rdi: 0n, rdx: 0x8000_0000_0000_0000n });
      const { ended, steps, agreed } = await follow(guest, reference);
      // Some hosts do not return to a stack that is not canonical.
      const judged = vector !== "#SS" || !(reference instanceof HostReference) || reference.anyStack;
      expect(ended, source).toMatchObject({
        kind: "exit",
        exit: { kind: "fault", fault: { vector } },
        judged,
      });
      expect(steps, source).toBe(agreed);
      expect(steps, source).toBe(vector === "#PF" && source.includes("jmp") ? 2 : vector === "#SS" ? 2 : 1);
    }
  });

  test("what this engine cannot execute is the end, and nobody was asked", async () => {
    const guest = await lowGuest("nop\naddsd %xmm0, %xmm1\n");
    const { ended, notJudged } = await follow(guest, reference);
    expect(ended).toMatchObject({ kind: "exit", exit: { kind: "unimplemented" }, judged: false });
    expect(notJudged.size).toBe(0);
  });
});
