// Where administrators look, and what they cannot switch off (Linux tools/testing/selftests/livepatch/test-sysfs.sh and
// test-ftrace.sh, 6.1).

import { expect } from "vitest";
import { demo, hello } from "./patches.ts";
import { scenario } from "./scenario.ts";

const PATCHED = ["klp_hello: this has been live patched"];
const CMDLINE = ["console=ttyS0 quiet"];

scenario("sysfs test", "klp-sysfs", (rig) => {
  const { sysfs } = rig.lab;
  const root = "/sys/kernel/livepatch/klp_hello";
  rig.loadLp(hello(rig));
  expect(rig.show("cmdline")).toEqual(PATCHED);
  expect(
    ["", "/enabled", "/force", "/transition", "/vmlinux/patched"].map((path) => sysfs.mode(root + path)),
  ).toEqual(["drwxr-xr-x", "-rw-r--r--", "--w-------", "-r--r--r--", "-r--r--r--"]);
  expect(["/enabled", "/transition", "/vmlinux/patched"].map((path) => sysfs.read(root + path))).toEqual([
    "1\n",
    "0\n",
    "1\n",
  ]);
  rig.disableLp("klp_hello");
  expect(sysfs.exists(root)).toBe(false);
  rig.unload("klp_hello");
  expect(rig.show("cmdline")).toEqual(CMDLINE);
});

scenario("sysfs test object/patched", "klp-sysfs-object", (rig) => {
  const patched = () => rig.lab.sysfs.read("/sys/kernel/livepatch/klp_demo/klp_mod/patched");
  rig.loadLp(demo(rig));
  expect(patched()).toBe("0\n");
  rig.loadMod("klp_mod");
  expect(patched()).toBe("1\n");
  expect(rig.show("mod")).toEqual(["klp_mod, patched by klp_demo"]);
  rig.unload("klp_mod");
  expect(patched()).toBe("0\n");
  rig.disableLp("klp_demo");
  rig.unload("klp_demo");
});

scenario("livepatch interaction with ftrace_enabled sysctl", "klp-ftrace-enabled", (rig) => {
  rig.setFtraceEnabled("0");
  rig.loadFailingLp(hello(rig));
  expect(rig.show("cmdline")).toEqual(CMDLINE);
  rig.setFtraceEnabled("1");
  rig.loadLp(hello(rig));
  expect(rig.show("cmdline")).toEqual(PATCHED);
  rig.setFtraceEnabled("0");
  expect(rig.show("cmdline")).toEqual(PATCHED);
  rig.disableLp("klp_hello");
  rig.unload("klp_hello");
  expect(rig.show("cmdline")).toEqual(CMDLINE);
});
