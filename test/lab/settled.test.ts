// A fully patched function: its site jumps to the new body, and comes back from that when somebody else wants to be called
// there, or when there is something to decide again.

import { beforeEach, describe, expect, test } from "vitest";
import { SITE_SIZE, targetOf } from "../../src/ftrace/site.ts";
import { Lab } from "../../src/lab.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";

let lab: Lab;
let redirect: Redirect;

const address = (name: string) => lab.symbol(name).address;
const NEW = 101n;
const OLD = 2n;

beforeEach(async () => {
  lab = await Lab.open();
  redirect = lab.redirect("leaf", address("leaf_new"));
  redirect.enable();
  redirect.settled = true;
});

/** What leaf(1) returns, and the functions that it was executed in. */
function call(): { readonly result: bigint; readonly through: readonly string[] } {
  const through = new Set<string>();
  const trace = lab.machine.trace({ instructions: true }, ({ ip }) => {
    const range = lab.code.rangeAt(ip)?.range;
    through.add(range?.kind ?? lab.code.symbolAt(ip)!.symbol.name);
  });
  const { result } = lab.call("leaf", [1]);
  trace.stop();
  through.delete("lab_call");
  return { result, through: [...through] };
}

const siteNow = () => {
  const { ip } = redirect.site;
  const bytes = lab.machine.memory.read(ip, SITE_SIZE);
  return { opcode: bytes[0], target: targetOf(ip, bytes) };
};
const jump = () => ({ opcode: 0xe9, target: address("leaf_new") });

test("is entered without a trampoline and without a handler", () => {
  expect(siteNow()).toEqual(jump());
  expect(call()).toEqual({ result: NEW, through: ["leaf", "leaf_new"] });
  // By every way to call it.
  expect(lab.call("tail", [1]).result).toBe(NEW + 1n);
  expect(lab.call("through_pointer", [1]).result).toBe(NEW);
});

test("stays so whatever a task's patch state says: nobody asks", () => {
  for (const state of ["KLP_UNPATCHED", "KLP_PATCHED", "KLP_UNDEFINED"] as const) {
    lab.kernel.setPatchState(lab.kernel.tasks[0]!, state);
    expect(call().result).toBe(NEW);
  }
});

describe("an ops that comes later", () => {
  test("has its handler called, and the new body runs; when it is gone, so is the handler", () => {
    const calls: { ip: number; parent: string }[] = [];
    const ops = lab.ftrace.makeOps({
      name: "late",
      handler: ({ ip, parentIp }) => calls.push({ ip, parent: lab.code.symbolAt(parentIp)!.symbol.name }),
    });
    lab.ftrace.setFilter(ops, ["leaf"]);
    lab.ftrace.register(ops);
    expect(siteNow()).toEqual({ opcode: 0xe8, target: address("ftrace_ipmodify_caller") });
    const { result, through } = call();
    expect(result).toBe(NEW);
    expect(calls).toEqual([{ ip: redirect.site.ip, parent: "lab_call" }]);
    expect(through).toEqual([
      ...["leaf", "ftrace_ipmodify_caller", "ftrace_ops_list_func", "ftrace_hypercall_func", "hypercall"],
      ...["klp_ftrace_handler", "leaf_new"],
    ]);
    lab.ftrace.unregister(ops);
    expect(siteNow()).toEqual(jump());
    expect(call()).toEqual({ result: NEW, through: ["leaf", "leaf_new"] });
    expect(calls).toHaveLength(1);
  });

  test("with registers, too; and one that came before the redirect was settled", () => {
    const ops = lab.ftrace.makeOps({ name: "regs", handler: address("ftrace_stub"), saveRegs: true });
    lab.ftrace.setFilter(ops, ["leaf"]);
    redirect.settled = false;
    lab.ftrace.register(ops);
    redirect.settled = true;
    expect(siteNow()).toEqual({ opcode: 0xe8, target: address("ftrace_regs_caller") });
    expect(call()).toMatchObject({ result: NEW, through: expect.arrayContaining(["ftrace_stub"]) });
    lab.ftrace.unregister(ops);
    expect(siteNow()).toEqual(jump());
  });
});

describe("a new transition", () => {
  /** Tells of a call whose task's state decides. */
  function expectDecided(): void {
    const [task] = lab.kernel.tasks;
    for (const [state, result] of [
      ["KLP_UNPATCHED", OLD],
      ["KLP_PATCHED", NEW],
    ] as const) {
      lab.kernel.setPatchState(task!, state);
      expect(call()).toMatchObject({ result, through: expect.arrayContaining(["klp_ftrace_handler"]) });
    }
  }

  test("begins when the handler decides again: each task's state counts; and it is settled again", () => {
    redirect.settled = false;
    expect(lab.kernel.agenda.isEmpty).toBe(true);
    expect(siteNow()).toEqual({ opcode: 0xe8, target: redirect.ops.trampoline?.address });
    redirect.transition = true;
    expectDecided();
    redirect.transition = false;
    redirect.settled = true;
    expect(call()).toEqual({ result: NEW, through: ["leaf", "leaf_new"] });
  });

  test("may begin while CPUs run, once `settled` is false: until then everybody gets the new body", () => {
    const { agenda } = lab.kernel;
    agenda.live = true;
    redirect.settled = false;
    const seen = new Set<number>();
    for (let steps = 0; redirect.settled; steps++) {
      expect(steps).toBeLessThan(100);
      seen.add(siteNow().opcode!);
      // A breakpoint on its way is as good as what it is going to be. The call takes the interrupt that is waited for.
      expect(call().result).toBe(NEW);
      const [next] = agenda.ready();
      if (next !== undefined) agenda.step(next);
    }
    // The jump, the breakpoint, and the call, before every CPU has serialised behind it.
    expect([...seen]).toEqual([0xe9, 0xcc, 0xe8]);
    agenda.live = false;
    agenda.finish();
    expect(agenda.isEmpty).toBe(true);
    redirect.transition = true;
    expectDecided();
  });
});
