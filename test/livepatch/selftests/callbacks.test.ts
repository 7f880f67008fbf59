// Callbacks, as objects come and go before, during and after a live patch (Linux
// tools/testing/selftests/livepatch/test-callbacks.sh, 6.1).

import { expect } from "vitest";
import { demo, demo2 } from "./patches.ts";
import type { Rig } from "./rig.ts";
import { scenario } from "./scenario.ts";

const OLD_VERSION = ["version 1"];
const VERSION = ["version 2, of klp_demo"];
const VERSION2 = ["version 3, of klp_demo2"];
const OLD_MOD = ["klp_mod, as it was built"];
const MOD = ["klp_mod, patched by klp_demo"];
const OLD_WORK = ["klp_busy: busy_work enter", "klp_busy: busy_work exit"];
const WORK = ["klp_demo: demo_busy_work"];

const disable = (rig: Rig) => {
  rig.disableLp("klp_demo");
  rig.unload("klp_demo");
  expect(rig.show("version")).toEqual(OLD_VERSION);
};

scenario("target module before livepatch", "klp-callbacks-module-first", (rig) => {
  rig.loadMod("klp_mod");
  expect(rig.show("mod")).toEqual(OLD_MOD);
  rig.loadLp(demo(rig));
  expect([rig.show("version"), rig.show("mod")]).toEqual([VERSION, MOD]);
  disable(rig);
  expect(rig.show("mod")).toEqual(OLD_MOD);
  rig.unload("klp_mod");
});

scenario("module_coming notifier", "klp-callbacks-coming", (rig) => {
  rig.loadLp(demo(rig));
  rig.loadMod("klp_mod");
  expect([rig.show("version"), rig.show("mod")]).toEqual([VERSION, MOD]);
  disable(rig);
  expect(rig.show("mod")).toEqual(OLD_MOD);
  rig.unload("klp_mod");
});

scenario("module_going notifier", "klp-callbacks-going", (rig) => {
  rig.loadMod("klp_mod");
  rig.loadLp(demo(rig));
  expect(rig.show("mod")).toEqual(MOD);
  rig.unload("klp_mod");
  expect(rig.show("version")).toEqual(VERSION);
  disable(rig);
});

scenario("module_coming and module_going notifiers", "klp-callbacks-coming-going", (rig) => {
  rig.loadLp(demo(rig));
  rig.loadMod("klp_mod");
  expect(rig.show("mod")).toEqual(MOD);
  rig.unload("klp_mod");
  expect(rig.show("version")).toEqual(VERSION);
  disable(rig);
});

scenario("target module not present", "klp-callbacks-no-module", (rig) => {
  rig.loadLp(demo(rig));
  expect(rig.show("version")).toEqual(VERSION);
  disable(rig);
});

scenario("pre-patch callback -ENODEV", "klp-callbacks-refused", (rig) => {
  rig.loadMod("klp_mod");
  rig.loadFailingLp(demo(rig, { value: -19 }), "pre_patch_ret=-19");
  expect([rig.show("version"), rig.show("mod")]).toEqual([OLD_VERSION, OLD_MOD]);
  rig.unload("klp_mod");
});

scenario("module_coming + pre-patch callback -ENODEV", "klp-callbacks-coming-refused", (rig) => {
  const result = { value: 0 };
  rig.loadLp(demo(rig, result));
  rig.log("% echo -19 > /sys/module/klp_demo/parameters/pre_patch_ret");
  result.value = -19;
  rig.loadFailingMod("klp_mod");
  expect(rig.lab.modules.loaded.map(({ name }) => name)).toEqual(["klp_demo"]);
  expect(rig.show("version")).toEqual(VERSION);
  disable(rig);
});

scenario("multiple target modules", "klp-callbacks-modules", (rig) => {
  rig.loadMod("klp_busy", "block_transition=N");
  expect(rig.show("busy")).toEqual(OLD_WORK);
  rig.loadLp(demo(rig));
  expect(rig.show("busy")).toEqual(WORK);
  rig.loadMod("klp_mod");
  expect(rig.show("mod")).toEqual(MOD);
  rig.unload("klp_mod");
  disable(rig);
  expect(rig.show("busy")).toEqual(OLD_WORK);
  rig.unload("klp_busy");
});

scenario("busy target module", "klp-callbacks-busy", (rig) => {
  const { livepatch } = rig.lab;
  rig.setInt("block_transition", 1);
  rig.loadMod("klp_busy", "block_transition=Y");
  rig.loadLpNowait(demo(rig));
  const isStalled = () => rig.lab.sysfs.read("/sys/kernel/livepatch/klp_demo/transition") === "1\n";
  rig.wait(() => isStalled() && (livepatch.transition?.tries ?? 0) > 2);
  expect(livepatch.blockers().map(({ task, text }) => `${task} ${text}`)).toEqual([
    "kworker/0:0:5 is sleeping on function busy_work",
  ]);
  // Whoever begins meanwhile has the new code.
  expect(rig.show("version")).toEqual(VERSION);
  rig.loadMod("klp_mod");
  expect(rig.show("mod")).toEqual(MOD);
  rig.unload("klp_mod");
  disable(rig);
  rig.unload("klp_busy");
});

scenario("multiple livepatches", "klp-callbacks-stacked", (rig) => {
  rig.loadLp(demo(rig));
  expect(rig.show("version")).toEqual(VERSION);
  rig.loadLp(demo2(rig));
  expect(rig.show("version")).toEqual(VERSION2);
  rig.disableLp("klp_demo2");
  expect(rig.show("version")).toEqual(VERSION);
  rig.disableLp("klp_demo");
  expect(rig.show("version")).toEqual(OLD_VERSION);
  rig.unload("klp_demo2");
  rig.unload("klp_demo");
});

scenario("atomic replace", "klp-callbacks-replace", (rig) => {
  rig.loadLp(demo(rig));
  expect(rig.show("version")).toEqual(VERSION);
  rig.loadLp(demo2(rig, true), "replace=1");
  expect(rig.show("version")).toEqual(VERSION2);
  rig.disableLp("klp_demo2");
  expect(rig.show("version")).toEqual(OLD_VERSION);
  rig.unload("klp_demo2");
  rig.unload("klp_demo");
});
