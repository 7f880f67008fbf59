// Functions of the kernel are replaced, by one patch, by two, by one that replaces the other (Linux
// tools/testing/selftests/livepatch/test-livepatch.sh, 6.1).

import { expect } from "vitest";
import { hello, replace } from "./patches.ts";
import { scenario } from "./scenario.ts";

const HELLO = ["klp_hello: this has been live patched"];
const REPLACE = ["klp_replace: this has been live patched"];
const CMDLINE = ["console=ttyS0 quiet"];
const MEMINFO = ["MemTotal: 16384 kB"];

scenario("basic function patching", "klp-basic", (rig) => {
  expect(rig.show("cmdline")).toEqual(CMDLINE);
  rig.loadLp(hello(rig));
  expect(rig.show("cmdline")).toEqual(HELLO);
  rig.disableLp("klp_hello");
  rig.unload("klp_hello");
  expect(rig.show("cmdline")).toEqual(CMDLINE);
});

scenario("multiple livepatches", "klp-multiple", (rig) => {
  const both = () => [...rig.show("cmdline"), ...rig.show("meminfo")];
  rig.loadLp(hello(rig));
  expect(both()).toEqual([...HELLO, ...MEMINFO]);
  rig.loadLp(replace(rig, false), "replace=0");
  expect(both()).toEqual([...HELLO, ...REPLACE]);
  rig.disableLp("klp_replace");
  rig.unload("klp_replace");
  expect(both()).toEqual([...HELLO, ...MEMINFO]);
  rig.disableLp("klp_hello");
  rig.unload("klp_hello");
  expect(both()).toEqual([...CMDLINE, ...MEMINFO]);
});

scenario("atomic replace livepatch", "klp-replace", (rig) => {
  const both = () => [...rig.show("cmdline"), ...rig.show("meminfo")];
  rig.loadLp(hello(rig));
  expect(both()).toEqual([...HELLO, ...MEMINFO]);
  rig.loadLp(replace(rig, true), "replace=1");
  expect(both()).toEqual([...CMDLINE, ...REPLACE]);
  rig.unload("klp_hello");
  expect(both()).toEqual([...CMDLINE, ...REPLACE]);
  rig.disableLp("klp_replace");
  rig.unload("klp_replace");
  expect(both()).toEqual([...CMDLINE, ...MEMINFO]);
});
