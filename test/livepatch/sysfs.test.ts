// Files of live patching: what they show at each point of a transition, what writing to them does, and what they refuse.

import { beforeEach, describe, expect, test } from "vitest";
import { Refusal } from "../../src/base/refuse.ts";
import { Lab } from "../../src/lab.ts";
import type { Patch } from "../../src/livepatch/patch.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { compare } from "../transcript.ts";

const ROOT = "/sys/kernel/livepatch";
const FTRACE_ENABLED = "/proc/sys/kernel/ftrace_enabled";

let lab: Lab;
beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
});

const at = (name: string) => lab.symbol(name).address;
const read = (path: string) => lab.sysfs.read(path).trim();
const write = (path: string, text: string) => lab.sysfs.write(`${ROOT}/${path}`, text);
const enable = (name: string, func = "leaf", replacement = `${func}_new`, replace = false): Patch =>
  lab.livepatch.enable({
    name,
    replace,
    objects: [{ functions: [{ name: func, replacement: at(replacement) }] }],
  });
const log = () => lab.kernel.log.lines.map((line) => line.replace(/^\[[^\]]*\] livepatch: /, ""));
const patchStates = () =>
  lab.kernel.tasks.map((task) => read(`/proc/${task.struct.getNumber("pid")}/patch_state`));

/** Stops the first vCPU in the middle of `func`, called as leaf. */
function stopIn(func: string): Vcpu {
  const vcpu = lab.begin(at("leaf"), [1n]);
  vcpu.run({ until: at(func), budget: 1000 });
  vcpu.step();
  expect(lab.code.describe(vcpu.rip)).toMatch(new RegExp(`^${func}\\+0x[1-9a-f]`));
  return vcpu;
}

/** enabled, transition, patched, and the states of the tasks. */
const show = (name: string) =>
  [
    ...["enabled", "transition", "vmlinux/patched"].map((file) => read(`${ROOT}/${name}/${file}`)),
    ...patchStates(),
  ].join(" ");

describe("the tree", () => {
  test("has what patches are there, by the kernel's names, and nothing else", () => {
    expect(lab.sysfs.list(ROOT)).toEqual([]);
    const patch = enable("fix");
    expect(lab.sysfs.list(ROOT)).toEqual(["fix"]);
    expect(lab.sysfs.list(`${ROOT}/fix`)).toEqual(["enabled", "transition", "force", "vmlinux"]);
    expect(lab.sysfs.list(`${ROOT}/fix/vmlinux`)).toEqual(["patched", "leaf,1"]);
    expect(lab.sysfs.mode(`${ROOT}/fix/vmlinux/leaf,1`)).toBe("drwxr-xr-x");
    lab.livepatch.disable(patch);
    expect([lab.sysfs.list(ROOT), lab.sysfs.exists(`${ROOT}/fix`)]).toEqual([[], false]);
  });

  test("shows the NOPs of a patch that replaces others while they are needed", () => {
    enable("fix");
    const vcpu = stopIn("leaf_new");
    enable("all", "tail", "leaf_new", true);
    expect(lab.sysfs.list(ROOT)).toEqual(["fix", "all"]);
    expect(lab.sysfs.list(`${ROOT}/all/vmlinux`)).toEqual(["patched", "tail,1", "leaf,1"]);
    lab.finish(vcpu);
    lab.livepatch.retry();
    expect(lab.sysfs.list(ROOT)).toEqual(["all"]);
    expect(lab.sysfs.list(`${ROOT}/all/vmlinux`)).toEqual(["patched", "tail,1"]);
    expect(lab.call("leaf", [1]).result).toBe(2n);
  });
});

describe("a transition that is held up", () => {
  test("is turned round by a 0, and goes back to where it came from", () => {
    const vcpu = stopIn("leaf");
    enable("fix");
    expect(show("fix")).toBe("1 1 1 0 1");
    expect(lab.livepatch.blockers().map(({ text }) => text)).toEqual(["is sleeping on function leaf"]);
    write("fix/enabled", "0");
    expect([lab.sysfs.list(ROOT), patchStates()]).toEqual([[], ["-1", "-1"]]);
    expect(lab.finish(vcpu)).toBe(2n);
    expect(lab.call("leaf", [1]).result).toBe(2n);
    expect(log().slice(-4)).toEqual([
      "'fix': reversing transition from patching to unpatching",
      "'fix': starting unpatching transition",
      "'fix': completing unpatching transition",
      "'fix': unpatching complete",
    ]);
  });

  test("to the old code is turned round by a 1, and the patch stays", () => {
    enable("fix");
    const vcpu = stopIn("leaf_new");
    write("fix/enabled", "0");
    expect(show("fix")).toBe("0 1 1 1 0");
    write("fix/enabled", "1");
    expect(show("fix")).toBe("1 0 1 -1 -1");
    expect(lab.finish(vcpu)).toBe(101n);
    expect(lab.call("leaf", [1]).result).toBe(101n);
  });

  test("is forced to its end by a 1, and not by a 0", () => {
    const vcpu = stopIn("leaf");
    const patch = enable("fix");
    write("fix/force", "0");
    expect(show("fix")).toBe("1 1 1 0 1");
    write("fix/force", "1");
    expect([show("fix"), patch.forced]).toEqual(["1 0 1 -1 -1", false]);
    expect(lab.finish(vcpu)).toBe(2n);
  });

  test("and forced away from a patch, keeps that patch's module for ever", async () => {
    await lab.loadModule("shapes_fix", ["asm/shapes.S"]);
    const users = () => lab.modules.loaded.find(({ name }) => name === "shapes_fix")?.users;
    const first = enable("shapes_fix");
    expect(users()).toBe(1);
    lab.livepatch.disable(first);
    expect(users()).toBe(0);
    const second = enable("shapes_fix");
    const vcpu = stopIn("leaf_new");
    write("shapes_fix/enabled", "0");
    write("shapes_fix/force", "1");
    expect([second.forced, lab.livepatch.patches, users()]).toEqual([true, [], 1]);
    expect(() => lab.modules.remove("shapes_fix")).toThrow(/in use \(EAGAIN\)/);
    expect(lab.finish(vcpu)).toBe(101n);
  });
});

describe("what is written to enabled while something else is done is looked at in its turn:", () => {
  /** Lets everything be done that can be. */
  function finish(): void {
    lab.kernel.agenda.live = false;
    lab.kernel.agenda.finish();
  }

  test("a second 0 does not turn round what the first has", () => {
    const vcpu = stopIn("leaf");
    const patch = enable("fix");
    lab.kernel.agenda.live = true;
    const [first, second] = [write("fix/enabled", "0"), write("fix/enabled", "0")];
    finish();
    expect([first?.state.kind, second?.refusal?.code]).toEqual(["taken", "klp-already"]);
    expect([lab.livepatch.patches, patch.enabled]).toEqual([[], false]);
    lab.finish(vcpu);
  });

  test("a 1 while it is being enabled is too late", () => {
    const vcpu = stopIn("leaf");
    lab.kernel.agenda.live = true;
    const patch = enable("fix");
    lab.kernel.agenda.step("livepatch");
    const late = write("fix/enabled", "1");
    finish();
    expect([late?.refusal?.code, patch.enabled, show("fix")]).toEqual(["klp-already", true, "1 1 1 0 1"]);
    lab.finish(vcpu);
  });

  test("a 0 while its transition is being completed disables it", () => {
    enable("one", "tail", "leaf_new");
    const tracer = lab.ftrace.makeOps({ name: "tracer", handler: () => {} });
    lab.ftrace.setFilter(tracer, ["tail"]);
    lab.ftrace.register(tracer); // so that the site does not jump
    const vcpu = lab.begin(at("tail"), [1n]);
    while (lab.kernel.cpus[0]!.struct.getNumber("preempt_count") === 0) vcpu.step();
    const patch = enable("fix");
    expect([patch.enabled, lab.livepatch.transition?.patch]).toEqual([true, patch]);
    expect(lab.livepatch.waitsFor).toMatch(/preemptible/);
    const request = write("fix/enabled", "0");
    expect(request?.state.kind).toBe("waiting");
    lab.finish(vcpu);
    expect([request?.state.kind, lab.livepatch.patches.map(String)]).toEqual(["taken", ["one"]]);
  });
});

test("refusals, with the kernel's errors", () => {
  const lines: string[] = [];
  const refused = (what: string, ask: () => unknown) => {
    try {
      ask();
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      lines.push(`# ${what}`, error.message, "");
      return;
    }
    expect.fail(`${what}: not refused`);
  };
  refused("read what is not there", () => read(`${ROOT}/fix/enabled`));
  enable("fix");
  refused("read a directory", () => read(`${ROOT}/fix`));
  refused("list a file", () => lab.sysfs.list(`${ROOT}/fix/enabled`));
  refused("read what only takes", () => read(`${ROOT}/fix/force`));
  refused("write what only tells", () => write("fix/transition", "1"));
  refused("enable what is enabled", () => write("fix/enabled", "1"));
  refused("write what is no switch", () => write("fix/enabled", "maybe"));
  refused("force what is in no transition", () => write("fix/force", "1"));
  refused("switch ftrace off below a patch", () => lab.sysfs.write(FTRACE_ENABLED, "0"));
  refused("switch ftrace to what is no number", () => lab.sysfs.write(FTRACE_ENABLED, "off"));
  const vcpu = stopIn("leaf_new");
  write("fix/enabled", "n");
  refused("enable another one meanwhile", () => enable("other", "tail", "leaf_new"));
  refused("disable what is being disabled", () => write("fix/enabled", "off"));
  lab.finish(vcpu);
  compare("klp-sysfs-refusals", lines);
});
