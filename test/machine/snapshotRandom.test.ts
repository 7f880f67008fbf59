// Random histories: runs, steps, writes, changes of what is mapped and of code, snapshots, restores to any of them,
// disposals; held against full copies. A restored state must also go on as the original did, in both tiers.

import fc from "fast-check";
import { expect, test } from "vitest";
import { type Addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import { GPR } from "../../src/x86/register.ts";
import { RO, RW, RWX, RX, TEXT } from "./guest.ts";
import {
  ALIAS,
  copyOf,
  type FullCopy,
  makeMachine,
  POKES,
  rebuild,
  stateKey,
  VCPUS,
  WINDOW,
} from "./snapshotModel.ts";

const page = fc.constantFrom(...WINDOW);
const vcpu = fc.nat({ max: VCPUS - 1 });
const access = fc.constantFrom(RW, RO, RX, RWX);
const value = fc.bigInt({ min: 0n, max: 2n ** 64n - 1n });

type Act = (machine: Machine) => void;
interface Command {
  readonly what: string;
  readonly act: Act;
}

const command = (what: string, act: Act): Command => ({ what, act });

/** Refused where it makes no sense at the time. */
function attempt(act: () => void): void {
  try {
    act();
  } catch (error) {
    if (!(error instanceof Error) || error.name !== "Refusal") throw error;
  }
}

const changes = fc.oneof(
  {
    weight: 4,
    arbitrary: fc
      .tuple(vcpu, fc.constantFrom(1, 7, 60, 4000))
      .map(([n, budget]) => command(`run ${n} ${budget}`, (m) => void m.vcpus[n]!.run({ budget }))),
  },
  { weight: 1, arbitrary: vcpu.map((n) => command(`step ${n}`, (m) => void m.vcpus[n]!.step())) },
  {
    weight: 3,
    arbitrary: fc
      .tuple(page, fc.nat({ max: PAGE_SIZE - 1 }), fc.constantFrom(1, 8, 100, 4096), fc.nat({ max: 3 }))
      .filter(([at]) => at !== TEXT)
      .map(([at, within, size, byte]) =>
        command(`write ${at - TEXT} ${within} ${size}`, (m) =>
          attempt(() => m.memory.write(offset(at, within), new Uint8Array(size).fill(byte))),
        ),
      ),
  },
  {
    weight: 2,
    arbitrary: fc
      .tuple(fc.constantFrom(...POKES), fc.nat({ max: 3 }))
      .map(([at, byte]) =>
        command(`poke ${at - TEXT}`, (m) => attempt(() => m.memory.write(at, Uint8Array.of(byte)))),
      ),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(page, access)
      .map(([at, as]) => command(`map ${at - TEXT}`, (m) => attempt(() => m.memory.map(at, PAGE_SIZE, as)))),
  },
  {
    weight: 1,
    arbitrary: page.map((at) =>
      command(`unmap ${at - TEXT}`, (m) => attempt(() => m.memory.unmap(at, PAGE_SIZE))),
    ),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(page, access)
      .map(([at, as]) =>
        command(`protect ${at - TEXT}`, (m) => attempt(() => m.memory.protect(at, PAGE_SIZE, as))),
      ),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(fc.nat({ max: 2 }), page, access)
      .map(([n, of, as]) =>
        command(`alias ${n} ${of - TEXT}`, (m) =>
          attempt(() => m.memory.alias(offset(ALIAS, n * PAGE_SIZE), of, PAGE_SIZE, as)),
        ),
      ),
  },
  {
    weight: 1,
    arbitrary: fc
      .tuple(vcpu, fc.constantFrom("rax", "rcx", "rdx", "r15" as const), value)
      .map(([n, name, to]) =>
        command(`set ${n} ${name}`, (m) => m.vcpus[n]!.set(GPR.find((r) => r === name)!, to)),
      ),
  },
  {
    weight: 1,
    arbitrary: fc.tuple(vcpu, fc.nat({ max: 0xff })).map(([n, flags]) =>
      command(`flags ${n}`, (m) => {
        m.vcpus[n]!.rflags = BigInt(flags & 0xd5);
      }),
    ),
  },
);

type Step =
  | { readonly kind: "change"; readonly change: Command }
  | { readonly kind: "snapshot" }
  | { readonly kind: "hash" }
  | { readonly kind: "restore" | "dispose"; readonly which: number };

const steps = fc.array(
  fc.oneof(
    { weight: 12, arbitrary: changes.map((change): Step => ({ kind: "change", change })) },
    { weight: 4, arbitrary: fc.constant<Step>({ kind: "snapshot" }) },
    { weight: 2, arbitrary: fc.constant<Step>({ kind: "hash" }) },
    { weight: 4, arbitrary: fc.nat().map((which): Step => ({ kind: "restore", which })) },
    { weight: 2, arbitrary: fc.nat().map((which): Step => ({ kind: "dispose", which })) },
  ),
  { minLength: 20, maxLength: 70 },
);

/** Hashes and states, which must name each other. */
const keyByHash = new Map<bigint, string>();
const hashByKey = new Map<string, bigint>();

function checkHash(machine: Machine, copy: FullCopy): void {
  const hash = machine.hash();
  const key = stateKey(copy);
  expect(keyByHash.get(hash) ?? key).toBe(key);
  expect(hashByKey.get(key) ?? hash).toBe(hash);
  keyByHash.set(hash, key);
  hashByKey.set(key, hash);
}

function execute(machine: Machine, history: readonly Step[], hashing: boolean): void {
  const live: { snapshot: Snapshot; copy: FullCopy; later?: FullCopy }[] = [];
  for (const step of history) {
    if (step.kind === "change") {
      step.change.act(machine);
    } else if (step.kind === "snapshot") {
      const copy = copyOf(machine);
      live.push({ snapshot: machine.snapshot(), copy });
      expect(copyOf(machine)).toEqual(copy);
    } else if (step.kind === "hash") {
      if (hashing) checkHash(machine, copyOf(machine));
    } else if (live.length > 0) {
      const which = step.which % live.length;
      const entry = live[which]!;
      if (step.kind === "dispose") {
        entry.snapshot.dispose();
        live.splice(which, 1);
        continue;
      }
      machine.restore(entry.snapshot);
      expect(copyOf(machine)).toEqual(entry.copy);
      if (hashing) checkHash(machine, entry.copy);
      machine.vcpus[0]!.run({ budget: 50 });
      const after = copyOf(machine);
      entry.later ??= after;
      expect(after).toEqual(entry.later);
    }
  }
  const end = copyOf(machine);
  checkHash(machine, end);
  expect(rebuild(end).hash()).toBe(machine.hash());
  for (const { snapshot, copy } of live.reverse()) {
    machine.restore(snapshot);
    expect(copyOf(machine)).toEqual(copy);
    snapshot.dispose();
  }
  const { lines, cells, snapshots } = machine.snapshotStats;
  expect({ lines, cells, snapshots }).toEqual({ lines: 0, cells: 0, snapshots: 0 });
}

/** All that was executed once and restored must be right for code that is compiled, too. */
function warmUp(machine: Machine): void {
  const { memory, vcpus } = machine;
  const state = vcpus.map((vcpu) => [vcpu.registers(), vcpu.rip] as const);
  const data: [Addr, Uint8Array][] = WINDOW.filter((at) => memory.isMapped(at, 1)).map((at) => [
    at,
    memory.read(at, PAGE_SIZE),
  ]);
  for (const vcpu of vcpus) vcpu.run({ budget: 20_000 });
  expect(machine.regions.activeCount).toBeGreaterThan(0);
  for (const [at, bytes] of data) if (at !== TEXT && at !== TEXT + PAGE_SIZE) memory.write(at, bytes);
  vcpus.forEach((vcpu, n) => {
    const [registers, rip] = state[n]!;
    for (const name of GPR) vcpu.set(name, registers[name]);
    vcpu.rip = rip;
  });
}

test.each([
  { what: "cold", warm: false, recordCalls: false, hashing: false },
  { what: "cold, with hashes", warm: false, recordCalls: false, hashing: true },
  { what: "hot, with hashes", warm: true, recordCalls: false, hashing: true },
  { what: "cold, with the calls recorded", warm: false, recordCalls: true, hashing: true },
  { what: "hot, with the calls recorded", warm: true, recordCalls: true, hashing: false },
])("histories, $what", ({ warm, recordCalls, hashing }) => {
  fc.assert(
    fc.property(steps, (history) => {
      const machine = makeMachine(recordCalls);
      if (warm) warmUp(machine);
      execute(machine, history, hashing);
    }),
    { seed: 3, numRuns: 25 },
  );
});
