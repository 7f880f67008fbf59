// What guest code may ask of the laboratory with any arguments, and structures that it may break: a value ends the run,
// never the host.

import fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { seeded } from "../../src/explore/chooser.ts";
import { HYPERCALL } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Snapshot } from "../../src/machine/snapshot.ts";
import { Patients } from "../../src/patients.ts";

let lab: Lab;
let fresh: Snapshot;

beforeAll(async () => {
  lab = await Lab.open({ vcpus: 2 });
  fresh = lab.machine.snapshot();
});

const wild = fc.oneof(
  fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }),
  fc.constantFrom(0n, 1n, 2n, 8n, 2n ** 63n, 2n ** 64n - 1n, 0xffff888000000ffcn, 0xffff888000000000n),
  fc.integer({ min: 0, max: 512 }).map(BigInt),
);

test("a hypercall with any number and arguments is answered or ends the run, in a sentence", () => {
  const numbers = fc.oneof(fc.constantFrom(...Object.values(HYPERCALL)).map(BigInt), wild);
  let panics = 0;
  fc.assert(
    fc.property(numbers, wild, wild, wild, (...args) => {
      lab.machine.restore(fresh);
      const vcpu = lab.begin(lab.symbol("hypercall").address, args);
      const end = lab.kernel.run(vcpu, { budget: 1000 });
      if (end.kind === "panic") {
        expect(end.text).not.toContain("\n");
        panics++;
      } else expect(lab.kernel.returned(end)).toBe(true);
    }),
    { numRuns: 3000, seed: 3 },
  );
  expect(panics).toBeGreaterThan(500);
});

test("any words written over the kernel's structures in a run end in a value", async () => {
  const patients = await Patients.open({ vcpus: 2 });
  const { machine, kernel, image } = patients.lab;
  const begin = machine.snapshot();
  const ends = new Set<string>();
  const choose = seeded(9);
  for (let round = 0; round < 24; round++) {
    machine.restore(begin);
    const conductor = patients.lab.conductor({ chooser: seeded(round) });
    patients.begin();
    expect(conductor.run({ budget: 20_000 + 2500 * round }).kind).toBe("budget");
    const structs = [...kernel.tasks, ...kernel.cpus].map(({ struct }) => struct.at);
    const data = image.segments.filter(({ write }) => write).map(({ address }) => address);
    for (let n = 0; n < 3; n++) {
      const places = choose.choose("task", 4) === 0 ? data : structs;
      const at = offset(places[choose.choose("task", places.length)]!, 8 * choose.choose("task", 40));
      const word = [0n, 1n, BigInt(at), 0x8000_0000_0000n, 2n ** 63n, BigInt(structs[0]!) + 3n][
        choose.choose("task", 6)
      ]!;
      if (machine.memory.isMapped(at, 8)) machine.memory.writeWord(at, word);
    }
    ends.add(conductor.run({ budget: 100_000 }).kind);
    expect(patients.lab.dumper.tasks().length).toBeGreaterThan(0);
  }
  expect([...ends].sort()).toEqual(expect.arrayContaining(["oops"]));
  patients.lab.dispose();
});

test("a printk's width and arguments are bounded", () => {
  const { kernel, machine } = lab;
  machine.restore(fresh);
  const at = lab.allocate(64);
  machine.memory.write(at, new TextEncoder().encode("%999999999d|%s|%5x|%u%%\0"));
  kernel.log.printf(at, [7n, BigInt(at), 0x1234n]);
  const line = kernel.log.lines.at(-1)!;
  expect(line.length).toBeLessThanOrEqual(256);
});

test("a run in which nothing retires any more ends", async () => {
  const patients = await Patients.open();
  const { machine } = patients.lab;
  const execute = () => ({ kind: "budget", ip: machine.vcpus[0]!.rip }) as const;
  const conductor = patients.lab.conductor({ chooser: seeded(1), execute });
  patients.begin();
  expect(conductor.run({ budget: 100 })).toMatchObject({
    kind: "oops",
    text: expect.stringContaining("no instruction retires"),
  });
  patients.lab.dispose();
});
