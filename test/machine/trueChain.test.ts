// The recorded chain across stacks, against a model that goes by what the instructions of a small kernel mean: at every
// boundary of random histories of entries and exits, stepped, and wherever runs end that are hot in regions.

import { expect, test } from "vitest";
import { offset, toWord } from "../../src/base/addr.ts";
import type { TrueFrame } from "../../src/machine/callChain.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import { FLAG } from "../../src/x86/register.ts";
import { Random } from "../fuzz/random.ts";
import { ChainModel, type ModelState } from "./chainModel.ts";
import { type EntryKernel, entryKernel, OPS, SCRIPT_BYTES, VECTOR } from "./entryKernel.ts";
import {
  KERNEL_STACK_TOP,
  resetToUser,
  SELECTOR,
  systemGuest,
  USER_DATA,
  USER_STACK_TOP,
  USER_TEXT,
} from "./systemGuest.ts";

type Frames = readonly TrueFrame[];

const text = (frames: Frames): string =>
  frames
    .map((frame) =>
      frame.kind === "call"
        ? `call ${frame.call} ${frame.slot} ${frame.returnAddress}`
        : `interrupt ${frame.vector} ${frame.ip} ${frame.slot} ${frame.rsp} ${frame.user}`,
    )
    .join("\n");

function compare(guest: EntryKernel, model: ChainModel, where: string): void {
  const { machine, vcpu } = guest;
  const same = (found: Frames, expected: Frames, what: string) => {
    if (text(found) !== text(expected)) expect(found, `${what} ${where}`).toEqual(expected);
  };
  same(machine.trueChain(vcpu.rsp), model.running, "across stacks");
  if (model.onStack !== undefined) same(machine.trueStack(vcpu.rsp), model.onStack, "on the stack");
  same(machine.trueChain(guest.savedRsp(1 - model.task)), model.waiting, "of the other task");
}

/** Mostly operations; the rest of the bytes end work, or decide elsewhere. */
function history(seed: number) {
  const random = new Random().restart(seed, 0);
  return {
    random,
    options: {
      script: Uint8Array.from({ length: SCRIPT_BYTES }, () => random.below(OPS.length + 8)),
      breakpointStack: random.pick([0, 3]),
      softwareStack: random.pick([0, 2]),
    },
  };
}

/** Now and then, an interrupt; where they are off, seldom: it would be the next that user mode sees. */
function interrupt({ vcpu }: EntryKernel, model: ChainModel, random: Random): void {
  const enabled = (vcpu.rflags & FLAG.IF) !== 0n;
  if (random.below(1000) < (enabled ? 15 : 2)) vcpu.interrupt(random.pick([VECTOR.irq, VECTOR.otherIrq]));
  else if (random.below(1000) < 10 && !model.inNmi) vcpu.nmi();
}

test("at every boundary, snapshots restored in between", async () => {
  const total = { deepest: 0, userInterrupts: 0, syscalls: 0, sysrets: 0, emulated: 0, switches: 0 };
  for (let seed = 1; seed <= 8; seed++) {
    const { options, random } = history(seed);
    const guest = await entryKernel(options);
    const model = new ChainModel(guest);
    const saved: { snapshot: Snapshot; state: ModelState }[] = [];
    const restoring = seed % 2 === 0;
    for (let n = 0; n < 3000; n++) {
      interrupt(guest, model, random);
      model.step();
      compare(guest, model, `seed ${seed}, step ${n}, at ${guest.vcpu.rip}`);
      if (!restoring || !random.chance(2)) continue;
      if (saved.length < 10 || random.chance(60)) {
        saved[saved.length < 20 ? saved.length : random.below(20)] = {
          snapshot: guest.machine.snapshot(),
          state: model.state,
        };
      } else {
        const { snapshot, state } = random.pick(saved);
        guest.machine.restore(snapshot);
        model.state = state;
        compare(guest, model, `seed ${seed}, restored at step ${n}`);
      }
    }
    for (const key of Object.keys(total) as (keyof typeof total)[])
      total[key] = key === "deepest" ? Math.max(total[key], model.seen[key]) : total[key] + model.seen[key];
  }
  // All that there is to follow did happen.
  for (const count of Object.values(total)) expect(count).toBeGreaterThan(7);
});

test("a far return to user mode leaves no chain there", async () => {
  const { userData, userCode } = SELECTOR;
  const guest = await systemGuest({
    kernel: `call 1f\n 1: pushq $${userData}\n pushq $${USER_DATA}\n pushq $${userCode}\n pushq $${USER_TEXT}\n lretq`,
    user: "nop",
    options: { recordCalls: true },
  });
  const { machine, vcpu } = guest;
  for (let n = 0; n < 6; n++) expect(vcpu.step()).toBeUndefined();
  expect([vcpu.system.user, vcpu.rsp, machine.trueChain(vcpu.rsp)]).toEqual([true, USER_DATA, []]);
});

test("sysenter and sysexit: the kernel's chain begins and ends with them", async () => {
  const guest = await systemGuest({
    kernel: "entered: call 2f\n 2: add $8, %rsp\n sysexitq",
    user: `call 1f\n 1: mov $${USER_TEXT}, %edx\n mov %rsp, %rcx\n sysenter`,
    options: { recordCalls: true },
  });
  const { machine, vcpu, at } = guest;
  const { system } = vcpu;
  resetToUser(guest);
  system.setWord("sysenterCs", BigInt(SELECTOR.kernelCode));
  system.setWord("sysenterEip", toWord(at("entered")));
  system.setWord("sysenterEsp", toWord(KERNEL_STACK_TOP));
  const depths = Array.from({ length: 7 }, () => {
    expect(vcpu.step()).toBeUndefined();
    return [
      system.user,
      machine.trueChain(vcpu.rsp).length,
      machine.trueStack(offset(USER_STACK_TOP, -64)).length,
    ];
  });
  expect(depths).toEqual([
    ...[0, 1, 2].map(() => [true, 1, 1]),
    [false, 0, 1],
    [false, 1, 1],
    [false, 0, 1],
    [true, 1, 1],
  ]);
});

test("wherever runs end that are hot in regions", async () => {
  let regions = 0;
  for (let seed = 1; seed <= 3; seed++) {
    const { options, random } = history(seed);
    const [ran, stepped] = [await entryKernel(options), await entryKernel(options)];
    const model = new ChainModel(stepped);
    const behind = () =>
      stepped.vcpu.instructions < ran.vcpu.instructions ||
      stepped.vcpu.rip !== ran.vcpu.rip ||
      stepped.vcpu.rsp !== ran.vcpu.rsp;
    for (let n = 0; n < 50; n++) {
      const vector = random.pick([VECTOR.irq, VECTOR.otherIrq, VECTOR.nmi]);
      for (const { vcpu } of [ran, stepped]) {
        if (vector !== VECTOR.nmi) vcpu.interrupt(vector);
        else if (!model.inNmi) vcpu.nmi();
      }
      expect(ran.vcpu.run({ budget: 1 + random.below(1500) }).kind).toBe("budget");
      while (behind()) {
        expect(stepped.vcpu.instructions).toBeLessThanOrEqual(ran.vcpu.instructions);
        model.step();
      }
      compare({ ...stepped, machine: ran.machine, vcpu: ran.vcpu }, model, `seed ${seed}, run ${n}`);
    }
    regions += ran.machine.regions.activeCount;
  }
  expect(regions).toBeGreaterThan(8);
});
