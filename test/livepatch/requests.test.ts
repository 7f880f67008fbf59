// What is asked for while something else is under way waits for its turn, and may be out of place by then.

import { expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import { Lab } from "../../src/lab.ts";
import type { Patch, PatchSpec } from "../../src/livepatch/patch.ts";

test("a patch that is to be disabled twice, turned round and forced goes once", async () => {
  const lab = await Lab.open();
  const { agenda } = lab.kernel;
  const replacement = lab.symbol("leaf_new").address;
  const enable = (name: string, func: string): Patch =>
    lab.livepatch.enable({ name, objects: [{ functions: [{ name: func, replacement }] }] });
  const finish = () => {
    agenda.live = false;
    agenda.finish();
  };
  const first = enable("first", "leaf");
  agenda.live = true;
  for (const _ of "12") lab.livepatch.disable(first);
  lab.livepatch.reverse(first);
  lab.livepatch.force(first);
  finish();
  expect([lab.livepatch.patches, agenda.pending]).toEqual([[], []]);

  // What was its own is given out again, once.
  const patches = [enable("second", "leaf"), enable("third", "nap_between"), enable("fourth", "loop")];
  const structs = patches.flatMap(({ functions }) => functions.map(({ struct }) => struct.at));
  expect(new Set(structs).size).toBe(patches.length);
  lab.dispose();
});

/** Asks for all of `specs` before anything is done about the first, and does it then. */
function together(lab: Lab, specs: readonly PatchSpec[]): readonly Patch[] {
  const { agenda } = lab.kernel;
  agenda.live = true;
  const patches = specs.map((spec) => lab.livepatch.enable(spec));
  agenda.live = false;
  agenda.finish();
  return patches;
}

test("what a patch was checked against may be another by its turn", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  const objects = [{ functions: [{ name: "leaf", replacement }] }];
  const [, replacing] = together(lab, [
    { name: "first", objects, states: [{ id: 1, version: 2 }] },
    { name: "second", objects, replace: true },
  ]);
  expect(lab.livepatch.patches.map(String)).toEqual(["first"]);
  expect(replacing!.error).toBeDefined();
  lab.dispose();
});

test("a module may have come by its turn, and not fit it", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  await lab.offerModule("visitor", [packagePath("kernel/visitor.o")]);
  const objects = (name: string) => [{ name: "visitor", functions: [{ name, replacement }] }];
  lab.livepatch.enable({ name: "first", objects: objects("visit") });
  const { agenda } = lab.kernel;
  agenda.live = true;
  lab.modules.insert("visitor");
  const second = lab.livepatch.enable({ name: "second", objects: objects("vsiit"), replace: true });
  agenda.live = false;
  agenda.finish();
  expect([lab.livepatch.patches.map(String), second.error]).toEqual([["first"], 22]);
  expect(lab.kernel.log.lines.join("\n")).toContain("symbol 'vsiit' not found in symbol table");
  lab.dispose();
});

test("a callback that asks for something does not hide why its patch is refused", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  const callbacks = { postUnpatch: () => lab.livepatch.retry() };
  const fine = { name: "visitor", functions: [], callbacks };
  await lab.loadModule("visitor", [packagePath("kernel/visitor.o")]);
  const unfit = { functions: [{ name: "leaf", replacement }], callbacks: { prePatch: () => -19 } };
  expect(() => lab.livepatch.enable({ name: "fix", objects: [fine, unfit] })).toThrow("(ENODEV)");
  lab.dispose();
});

/** Something else than ftrace has written is at leaf's site. */
function spoil(lab: Lab): void {
  const { ip } = lab.ftrace.siteOf(lab.symbol("leaf").address, "leaf");
  lab.machine.memory.write(offset(ip, 1), Uint8Array.of(0x55));
}

test("a patch whose site cannot be rewritten any more is not disabled, nor is another put above it", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  const objects = [{ functions: [{ name: "leaf", replacement }] }];
  const patch = lab.livepatch.enable({ name: "fix", objects });
  spoil(lab);
  const stuck = "the call site of 'leaf' cannot be rewritten (EINVAL), and nothing is changed";
  expect(() => lab.livepatch.disable(patch)).toThrow(stuck);
  expect(() => lab.livepatch.enable({ name: "another", objects })).toThrow(stuck);
  expect([lab.livepatch.patches, patch.enabled, lab.livepatch.transition]).toEqual([
    [patch],
    true,
    undefined,
  ]);
  expect(lab.kernel.agenda.pending).toEqual([]);
  lab.dispose();
});

test("a site that cannot be rewritten at the end of a transition calls its handler on, which goes to the original", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  const tracer = lab.ftrace.makeOps({ name: "tracer", handler: () => {} });
  lab.ftrace.setFilter(tracer, ["leaf"]);
  lab.ftrace.register(tracer); // so that the site does not jump
  const patch = lab.livepatch.enable({
    name: "fix",
    objects: [{ functions: [{ name: "leaf", replacement }] }],
  });
  const { ip } = lab.ftrace.siteOf(lab.symbol("leaf").address, "leaf");
  const right = lab.machine.memory.read(ip, 5);
  spoil(lab);
  lab.livepatch.disable(patch);
  expect([lab.livepatch.patches, lab.livepatch.transition]).toEqual([[], undefined]);
  expect(lab.kernel.log.lines.join("\n")).toContain(
    "failed to unregister ftrace handler for function 'leaf' (-22)",
  );
  lab.machine.memory.write(ip, right);
  expect(lab.call("leaf", [1]).result).toBe(2n);
  lab.dispose();
});
