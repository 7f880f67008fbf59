// Modules that come or go while a patch of them is enabled: what is mapped already, and nobody has heard of, or is mapped still, is not
// patched; and one that has come is patched once.

import { beforeEach, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import type { Image } from "../../src/image/image.ts";
import { MODULE, MODULE_STATE } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Patch } from "../../src/livepatch/patch.ts";
import { StructView } from "../../src/machine/struct.ts";

let lab: Lab;
let visitor: Image;
let called: string[];
beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
  visitor = await lab.offerModule("visitor", [packagePath("kernel/visitor.o")]);
  called = [];
});

const enable = (): Patch =>
  lab.livepatch.enable({
    name: "fix",
    objects: [
      {
        name: "visitor",
        functions: [{ name: "visit", replacement: lab.symbol("leaf_new").address }],
        callbacks: {
          prePatch: () => {
            called.push("prePatch");
            return 0;
          },
          postPatch: () => void called.push("postPatch"),
          preUnpatch: () => void called.push("preUnpatch"),
          postUnpatch: () => void called.push("postUnpatch"),
        },
      },
    ],
  });

/** What the guest's loader does of it (kernel/module.c). */
function tell(at: Addr, state: keyof typeof MODULE_STATE): void {
  new StructView(lab.machine.memory, MODULE, at).set("state", MODULE_STATE[state]);
  lab.kernel.livepatch?.notify(at);
  expect(lab.kernel.livepatch?.notified(at)).toBe(0);
}

const visit = () => lab.call(visitor.symbol("visit").address, [1]).result;
const patched = () => lab.sysfs.read("/sys/kernel/livepatch/fix/visitor/patched").trim();

test("one that is mapped, and is going to come, is patched when it has", () => {
  const at = lab.modules.map("visitor")!;
  enable();
  expect([patched(), called]).toEqual(["0", []]);
  tell(at, "MODULE_STATE_COMING");
  expect([patched(), called]).toEqual(["1", ["prePatch", "postPatch"]]);
  expect(visit()).toBe(101n);
});

test("one that has come is patched by the enabling alone", () => {
  const at = lab.modules.map("visitor")!;
  tell(at, "MODULE_STATE_COMING");
  enable();
  expect([patched(), called]).toEqual(["1", ["prePatch", "postPatch"]]);
  tell(at, "MODULE_STATE_GOING");
  expect([patched(), called.slice(2)]).toEqual(["0", ["preUnpatch", "postUnpatch"]]);
});

test("one that has gone, and is mapped still, is left alone", () => {
  const at = lab.modules.map("visitor")!;
  tell(at, "MODULE_STATE_COMING");
  tell(at, "MODULE_STATE_GOING");
  enable();
  expect([patched(), called, visit()]).toEqual(["0", [], 2n]);
  lab.modules.unmap(at);
  lab.livepatch.disable(lab.livepatch.patch("fix"));
  expect([called, lab.livepatch.patches, lab.ftrace.enabledFunctions()]).toEqual([[], [], []]);
});

test("one that goes before the enabling of its patch has begun is none of its objects then", () => {
  const at = lab.modules.map("visitor")!;
  tell(at, "MODULE_STATE_COMING");
  const { agenda } = lab.kernel;
  agenda.live = true;
  new StructView(lab.machine.memory, MODULE, at).set("state", MODULE_STATE.MODULE_STATE_GOING);
  lab.kernel.livepatch?.notify(at);
  enable();
  agenda.live = false;
  agenda.finish();
  expect([patched(), called, visit()]).toEqual(["0", [], 2n]);
  const [object] = lab.livepatch.patch("fix").objects;
  expect([object?.isLoaded, object?.functions[0]?.place]).toEqual([false, undefined]);
});

test("a snapshot knows which have come", () => {
  const at = lab.modules.map("visitor")!;
  const before = lab.machine.snapshot();
  tell(at, "MODULE_STATE_COMING");
  enable();
  expect(patched()).toBe("1");
  lab.machine.restore(before);
  enable();
  expect(patched()).toBe("0");
});

test("two patches of one name that are asked for at once: the second is refused when its turn comes", () => {
  const { agenda } = lab.kernel;
  agenda.live = true;
  const [first, second] = [enable(), enable()];
  agenda.live = false;
  agenda.finish();
  expect([first.enabled, first.refusal, second.enabled, second.refusal?.errno]).toEqual([
    true,
    undefined,
    false,
    "EEXIST",
  ]);
  expect(lab.livepatch.patches).toEqual([first]);
});

test("looking again and again adds no further looks to those that come by themselves", () => {
  const vcpu = lab.begin(lab.symbol("leaf").address, [1n]);
  vcpu.run({ until: lab.symbol("leaf").address, budget: 100 });
  vcpu.step();
  const replacement = lab.symbol("leaf_new").address;
  lab.livepatch.enable({ name: "fix", objects: [{ functions: [{ name: "leaf", replacement }] }] });
  for (let n = 0; n < 5; n++) lab.livepatch.retry();
  expect(lab.livepatch.transition?.tries).toBe(6);
  lab.kernel.clock += 1e9;
  lab.kernel.agenda.finish();
  expect(lab.livepatch.transition?.tries).toBe(7);
});
