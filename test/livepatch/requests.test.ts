// What is asked for while something else is under way waits for its turn, and may be out of place by then.

import { afterEach, beforeEach, describe, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import { Lab } from "../../src/lab.ts";
import type { Callbacks, Patch, PatchSpec } from "../../src/livepatch/patch.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";

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
  expect(replacing!.refusal?.code).toBe("klp-states");
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
  expect([lab.livepatch.patches.map(String), second.refusal?.code]).toEqual([["first"], "klp-no-symbol"]);
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

test("what is refused in its turn says why", async () => {
  const lab = await Lab.open();
  const replacement = lab.symbol("leaf_new").address;
  const objects = [{ functions: [{ name: "leaf", replacement }] }];
  const patch = lab.livepatch.enable({ name: "fix", objects });
  lab.kernel.agenda.live = true;
  const requests = [lab.livepatch.disable(patch), lab.livepatch.disable(patch), lab.livepatch.force(patch)];
  expect(requests.map(({ state }) => state.kind)).toEqual(["waiting", "waiting", "waiting"]);
  lab.kernel.agenda.live = false;
  lab.kernel.agenda.finish();
  expect(requests.map(({ refusal }) => refusal?.code)).toEqual([
    undefined,
    "klp-disabled",
    "klp-no-transition",
  ]);
  lab.dispose();
});

describe("a callback that throws", () => {
  let lab: Lab;
  let objects: PatchSpec["objects"];
  const thrown = new Error("of the callback");
  const raise = () => {
    throw thrown;
  };
  beforeEach(async () => {
    lab = await Lab.open();
  });
  afterEach(() => lab.dispose());
  const enable = (callbacks: Callbacks): Patch => {
    objects = [{ functions: [{ name: "leaf", replacement: lab.symbol("leaf_new").address }], callbacks }];
    return lab.livepatch.enable({ name: "fix", objects });
  };
  const result = () => lab.call("leaf", [1]).result;
  /** Nothing is left half done. */
  const atRest = () => expect([lab.livepatch.transition, lab.kernel.agenda.pending]).toEqual([undefined, []]);

  test("before the patch: it is not enabled", () => {
    expect(() => enable({ prePatch: raise })).toThrow(thrown);
    atRest();
    expect([lab.livepatch.patches, result()]).toEqual([[], 2n]);
    expect(lab.kernel.log.lines.join("\n")).toContain("failed to enable patch 'fix'");
  });

  test("behind it: it is", () => {
    expect(() => enable({ postPatch: raise })).toThrow(thrown);
    atRest();
    expect([lab.livepatch.patch("fix").enabled, result()]).toEqual([true, 101n]);
  });

  test.each(["preUnpatch", "postUnpatch"] as const)("%s: it is gone", (kind) => {
    const patch = enable({ [kind]: raise });
    expect(() => lab.livepatch.disable(patch)).toThrow(thrown);
    atRest();
    expect([lab.livepatch.patches, result()]).toEqual([[], 2n]);
  });

  test.each([Promise.resolve(0), 0.5, "0"])("or answers %s does not agree", (answer) => {
    const prePatch = () => answer as number;
    expect(() => enable({ prePatch })).toThrow(/has answered .* \(EINVAL\); it has to be 0/);
    atRest();
    expect([lab.livepatch.patches, result()]).toEqual([[], 2n]);
  });
});

describe("taking a patch back with its module", () => {
  const assembly =
    ".globl leaf_fixed; .type leaf_fixed, @function\nleaf_fixed: nop; lea 40(%rdi), %rax; ret\n.size leaf_fixed, . - leaf_fixed";
  let lab: Lab;
  beforeEach(async () => {
    lab = await Lab.open();
  });
  afterEach(() => lab.dispose());
  const make = () =>
    lab.patch({ name: "fix", objects: [{ functions: [{ name: "leaf", replacement: "leaf_fixed" }] }] }, [
      { name: "fix", assembly },
    ]);
  const waits = () =>
    lab.kernel.agenda.pending.map(({ strand }) => strand).filter((strand) => strand !== "livepatch retry");
  function begin(): Vcpu {
    const vcpu = lab.begin(lab.symbol("leaf").address, [1n]);
    vcpu.run({ until: lab.symbol("leaf_fixed").address, budget: 1000 });
    vcpu.step();
    return vcpu;
  }

  test("lets another one of its name come, again and again", async () => {
    for (let n = 0; n < 3; n++) {
      const patch = await make();
      expect(lab.call("leaf", [1]).result).toBe(41n);
      await expect(make()).rejects.toThrow("module 'fix' is loaded already");
      expect(lab.unpatch(patch).state.kind).toBe("taken");
      expect([lab.call("leaf", [1]).result, lab.modules.has("fix")]).toEqual([2n, false]);
    }
  });

  test("waits for the transition, and leaves the module where that is turned round", async () => {
    const patch = await make();
    const vcpu = begin();
    lab.unpatch(patch);
    expect(lab.modules.has("fix")).toBe(true);
    lab.livepatch.reverse(patch);
    expect([patch.enabled, waits()]).toEqual([true, []]);
    lab.unpatch(patch);
    expect(lab.finish(vcpu)).toBe(41n);
    lab.livepatch.retry();
    expect([lab.livepatch.patches, lab.modules.has("fix"), waits()]).toEqual([[], false, []]);
  });

  test("leaves it where that is forced: somebody may be in it", async () => {
    const patch = await make();
    const vcpu = begin();
    lab.unpatch(patch);
    lab.livepatch.force(patch);
    expect([lab.livepatch.patches, lab.modules.has("fix"), waits()]).toEqual([[], true, []]);
    expect(lab.finish(vcpu)).toBe(41n);
  });
});
