// Which body a task gets: its own patch state within a transition, the replacement outside of one. Two tasks
// run at once, interleaved at any instruction boundary.

import { beforeEach, describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { SITE_SIZE } from "../../src/ftrace/site.ts";
import { type PatchState, TASK } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import { KLP_FUNC } from "../../src/livepatch/layout.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";
import { StructView } from "../../src/machine/struct.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode, MAX_LENGTH } from "../../src/x86/decode.ts";
import { GPR } from "../../src/x86/register.ts";
import { chooser, interleave } from "../kernel/interleave.ts";
import { beginWorkload, GREETING, readText, WORKLOADS } from "../lab/workloads.ts";

let lab: Lab;
let leaf: Redirect;
const STATES: readonly PatchState[] = ["KLP_UNDEFINED", "KLP_UNPATCHED", "KLP_PATCHED"];
const N = 5n;
/** loop(N) with `fresh` of its N calls of leaf going to the new body. */
const loopResult = (fresh: bigint) => (N * (N + 1n)) / 2n + N + 99n * fresh;

beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
  leaf = lab.redirect("leaf", lab.symbol("leaf_new").address);
});

const setStates = (...states: PatchState[]) =>
  states.forEach((state, n) => {
    lab.kernel.setPatchState(lab.kernel.tasks[n]!, state);
  });
const beginLoops = () =>
  lab.machine.vcpus.map((vcpu, n) =>
    lab.begin(lab.symbol("loop").address, [N], { vcpu, task: lab.kernel.tasks[n]! }),
  );

describe("a prepared redirect", () => {
  test("changes nothing until it is enabled", () => {
    expect(lab.call("leaf", [1]).result).toBe(2n);
    leaf.transition = true;
    expect(lab.call("leaf", [1]).result).toBe(2n);
  });

  test("has its klp_func in guest memory, which the trampoline's ops lead to", () => {
    const { memory } = lab.machine;
    const func = new StructView(memory, KLP_FUNC, leaf.ops.struct.getNumber("private") as Addr);
    expect(func.getNumber("new_func")).toBe(lab.symbol("leaf_new").address);
    expect(leaf.ops.struct.getNumber("func")).toBe(lab.symbol("klp_ftrace_handler").address);
    for (const on of [true, false]) {
      leaf.transition = on;
      expect(func.get("transition")).toBe(on ? 1n : 0n);
      expect(leaf.transition).toBe(on);
    }
    func.set("transition", 1);
    expect(leaf.transition).toBe(true);
  });

  test("catches calls, tail calls and calls through pointers", () => {
    leaf.enable();
    expect(lab.call("leaf", [1]).result).toBe(101n);
    expect(lab.call("tail", [1]).result).toBe(102n);
    expect(lab.call("loop", [N]).result).toBe(loopResult(N));
    expect(lab.call("through_pointer", [1]).result).toBe(101n);
  });

  test("shows in what a read through file->f_op gives", () => {
    const redirect = lab.redirect("mem_read", lab.symbol("mem_read_upper").address);
    const read = () => {
      const vcpu = beginWorkload(lab, WORKLOADS.find(({ name }) => name === "mem_read")!);
      return readText(lab, Number(lab.finish(vcpu)));
    };
    expect(read()).toBe(GREETING);
    redirect.enable();
    expect(read()).toBe(GREETING.toUpperCase());
    redirect.disable();
    expect(read()).toBe(GREETING);
  });
});

describe("interleaved at random boundaries", () => {
  test.for(STATES.flatMap((first) => STATES.map((second) => [first, second] as const)))(
    "tasks %s and %s get what their own state says in a transition, the new body after it",
    ([first, second]) => {
      leaf.transition = true;
      leaf.enable();
      for (let seed = 1; seed <= 6; seed++) {
        setStates(first, second);
        leaf.transition = true;
        const expected = [first, second].map((state) => loopResult(state === "KLP_UNPATCHED" ? 0n : N));
        expect(interleave(lab, beginLoops(), chooser(seed))).toEqual(expected);
        // Nobody is without a state in a transition, unless the order of writes was wrong: the handler says so.
        const warned = [first, second].includes("KLP_UNDEFINED");
        expect(lab.machine.memory.readWord(lab.symbol("klp_warned").address) !== 0n).toBe(warned);
        leaf.transition = false;
        const afterwards = [loopResult(N), loopResult(N)];
        expect(interleave(lab, beginLoops(), chooser(seed))).toEqual(afterwards);
      }
    },
  );

  test("the state is the task's, not the vCPU's", () => {
    leaf.transition = true;
    leaf.enable();
    setStates("KLP_PATCHED", "KLP_UNPATCHED");
    const [first, second] = lab.kernel.tasks;
    const [a, b] = lab.machine.vcpus;
    const loop = lab.symbol("loop").address;
    const vcpus = [
      lab.begin(loop, [N], { vcpu: a!, task: second! }),
      lab.begin(loop, [N], { vcpu: b!, task: first! }),
    ];
    expect(interleave(lab, vcpus, chooser(3))).toEqual([loopResult(0n), loopResult(N)]);
  });

  test("a state changed on the way counts from the handler's next look on", () => {
    leaf.transition = true;
    leaf.enable();
    const handler = lab.symbol("klp_ftrace_handler");
    // The flag is read first, and the state only if it is set.
    const [flagRead, stateRead] = readsOf(handler.address);
    const entry = { old: leaf.site.ip + SITE_SIZE, new: lab.symbol("leaf_new").address };
    let bodies = { old: 0, new: 0, mixed: 0 };
    for (let seed = 1; seed <= 30; seed++) {
      const choose = chooser(seed);
      setStates(STATES[choose(3)]!, STATES[choose(3)]!);
      leaf.transition = choose(3) > 0;
      const vcpus = beginLoops();
      const seen = new Map<Vcpu, { decided: "old" | "new"; entered: { old: number; new: number } }>(
        vcpus.map((vcpu) => [vcpu, { decided: "old", entered: { old: 0, new: 0 } }]),
      );
      const running = new Set(vcpus);
      while (running.size > 0) {
        const vcpu = [...running][choose(running.size)]!;
        const own = seen.get(vcpu)!;
        const state = lab.kernel.patchState(lab.kernel.current(vcpu)!);
        // The last look decides: the task's state only where the flag said that it matters.
        if (vcpu.rip === flagRead) own.decided = leaf.transition ? "old" : "new";
        if (vcpu.rip === stateRead) own.decided = state === "KLP_UNPATCHED" ? "old" : "new";
        if (vcpu.rip === entry[own.decided]) own.entered[own.decided]++;
        else expect([entry.old, entry.new]).not.toContain(vcpu.rip);
        const exit = vcpu.step();
        if (exit !== undefined) {
          expect(lab.describe(exit)).toMatch(/lab_call/);
          running.delete(vcpu);
        }
        // Somebody else's hand: the other task's state, this one's, or the end and start of a transition.
        const change = choose(40);
        if (change < 2) lab.kernel.setPatchState(lab.kernel.tasks[change]!, STATES[choose(3)]!);
        if (change === 2) leaf.transition = !leaf.transition;
      }
      for (const vcpu of vcpus) {
        const { entered } = seen.get(vcpu)!;
        expect(BigInt(entered.old + entered.new)).toBe(N);
        expect(vcpu.get("rax")).toBe(loopResult(BigInt(entered.new)));
        if (entered.old > 0 && entered.new > 0) bodies.mixed++;
        bodies = { ...bodies, old: bodies.old + entered.old, new: bodies.new + entered.new };
      }
    }
    for (const count of Object.values(bodies)) expect(count).toBeGreaterThan(10);
  });
});

/** Where the handler reads the transition flag and the patch state. */
function readsOf(handler: Addr): [Addr, Addr] {
  const vcpu = lab.machine.vcpus[0]!;
  const { memory } = lab.machine;
  setStates("KLP_UNPATCHED");
  lab.begin(lab.symbol("leaf").address, [1n]);
  vcpu.run({ until: handler, budget: 1000 });
  const wanted = [
    leaf.ops.struct.getNumber("private") + KLP_FUNC.fields.transition.offset,
    lab.kernel.tasks[0]!.struct.at + TASK.fields.patch_state.offset,
  ];
  const readers = wanted.map(() => undefined as Addr | undefined);
  while (lab.code.symbolAt(vcpu.rip)?.symbol.name === "klp_ftrace_handler") {
    const decoded = decode(memory.read(vcpu.rip, MAX_LENGTH), vcpu.rip);
    if (decoded.kind === "instruction" && decoded.instruction.memory?.base !== undefined) {
      const { base, displacement } = decoded.instruction.memory;
      const at = wanted.indexOf(Number(BigInt.asIntN(64, vcpu.get(GPR[base]!) + displacement)));
      if (at >= 0) readers[at] = vcpu.rip;
    }
    vcpu.step();
  }
  lab.finish(vcpu);
  return readers.map((at) => at ?? expect.fail("the handler does not read it")) as [Addr, Addr];
}
