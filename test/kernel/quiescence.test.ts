// Waiting until CPUs have serialised: whoever asks while a CPU is doing it for somebody else is answered by the next time.

import { expect, test } from "vitest";
import { serialise } from "../../src/kernel/quiescence.ts";
import { Userland } from "./userland.ts";

const PROGRAM = `
.text
program spins
1:	jmp 1b
done spins
`;
/** Of cpuid. */
const CPUID = [0x0f, 0xa2];

test("a CPU that is serialising already does it once more for whoever asks meanwhile", async () => {
  const userland = await Userland.open(PROGRAM);
  const { kernel, machine } = userland.lab;
  userland.start("spins");
  userland.run(2_000);
  const [vcpu, cpu] = [machine.vcpus[0]!, kernel.cpus[0]!];
  const step = (until: () => boolean) => {
    for (let n = 0; !until(); n++) {
      expect(n).toBeLessThan(2_000);
      kernel.run(vcpu, { budget: 1 });
    }
  };
  const isAtCpuid = () => machine.memory.read(vcpu.rip, 2).every((byte, n) => byte === CPUID[n]);

  step(() => vcpu.system.user);
  const first = serialise(kernel, cpu);
  step(isAtCpuid);
  const second = serialise(kernel, cpu);
  expect([first(), second()]).toEqual([false, false]);
  step(first);
  expect(second()).toBe(false);
  step(isAtCpuid);
  step(second);
  step(() => vcpu.system.user);
  expect([first(), second()]).toEqual([true, true]);
  userland.lab.dispose();
});
