// Who is called, and what is done with what was theirs: lists that change while somebody goes through them, trampolines that somebody
// is in, guards by context, the switch, modules that come and go.

import { beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr } from "../../src/base/addr.ts";
import type { FtraceOps, OpsOptions } from "../../src/ftrace/ftrace.ts";
import { bytesOf } from "../../src/ftrace/record.ts";
import { NOP5, SITE_SIZE } from "../../src/ftrace/site.ts";
import { load, unload } from "../../src/image/load.ts";
import { VECTORS } from "../../src/kernel/layout.ts";
import { holder } from "../../src/kernel/quiescence.ts";
import { Lab } from "../../src/lab.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";

const STRAND = "ftrace";

let lab: Lab;
let vcpu: Vcpu;
let called: string[];
beforeEach(async () => {
  lab = await Lab.open({ vcpus: 2 });
  vcpu = lab.machine.vcpus[0]!;
  called = [];
});

const at = (name: string) => lab.symbol(name).address;

function makeOps(name: string, filter: readonly string[], options: Partial<OpsOptions> = {}): FtraceOps {
  const ops = lab.ftrace.makeOps({ name, handler: () => void called.push(name), ...options });
  lab.ftrace.setFilter(ops, filter);
  return ops;
}

function traced(name: string, filter: readonly string[], options: Partial<OpsOptions> = {}): FtraceOps {
  const ops = makeOps(name, filter, options);
  lab.ftrace.register(ops);
  return ops;
}

/** Does all that is ready of ftrace's strand. */
function goOn(): void {
  const { agenda } = lab.kernel;
  while (agenda.ready().includes(STRAND)) agenda.step(STRAND);
}

/** What each strand waits for. */
const pending = () => lab.kernel.agenda.pending.map(({ what }) => what);
const trampolines = () => lab.code.ranges.filter(({ kind }) => kind === "trampoline");

describe("the list function", () => {
  test("calls all who are at the site, the last one registered first, and nobody else", () => {
    for (const [name, filter] of [
      ["first", ["leaf"]],
      ["elsewhere", ["tail"]],
      ["second", ["leaf", "tail"]],
    ] as const)
      traced(name, filter);
    lab.call("leaf", [1]);
    expect(called).toEqual(["second", "first"]);
    lab.call("tail", [1]);
    expect(called.slice(2)).toEqual(["second", "elsewhere", "second", "first"]);
  });

  test("calls nobody twice because somebody leaves the list and comes back while it is there", () => {
    traced("last", ["leaf"]);
    let again = true;
    const fickle: FtraceOps = traced("fickle", ["leaf"], {
      handler: () => {
        called.push("fickle");
        if (!again) return;
        again = false;
        lab.kernel.agenda.live = true;
        lab.ftrace.unregister(fickle);
        goOn();
        lab.ftrace.register(fickle);
        goOn();
        expect(pending()).toContain("link ops");
      },
    });
    traced("first", ["leaf"]);
    lab.call("leaf", [1]);
    expect(called).toEqual(["first", "fickle", "last"]);
    lab.kernel.agenda.live = false;
    lab.kernel.agenda.finish();
    lab.call("leaf", [1]);
    expect(called.slice(3)).toEqual(["fickle", "first", "last"]);
  });
});

describe("what was an ops'", () => {
  /** Stops the vCPU in the trampoline of `ops`, called by leaf. */
  function stopIn(ops: FtraceOps): void {
    lab.begin(at("leaf"), [1n]);
    vcpu.run({ until: ops.trampoline!.address, budget: 1000 });
    for (let n = 0; n < 5; n++) vcpu.step();
  }

  test("is given back once its vCPU is out of it, and not before", () => {
    const ops = traced("plain", ["leaf"], { handler: at("ftrace_stub") });
    stopIn(ops);
    lab.ftrace.unregister(ops);
    expect(pending()).toEqual([expect.stringMatching(/^wait until nobody is in ftrace_trampoline_/)]);
    expect(trampolines().length).toBe(1);
    lab.finish(vcpu);
    lab.kernel.agenda.finish();
    expect(pending()).toEqual([]);
    expect(trampolines()).toEqual([]);
  });

  test("waits for a task that was switched out in it, too, and the ops for its trampoline", () => {
    const ops = traced("plain", ["leaf"], { handler: at("ftrace_stub") });
    const task = lab.kernel.tasks[0]!;
    stopIn(ops);
    lab.kernel.setNext(vcpu, lab.kernel.cpus[0]!.idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    for (let n = 0; n < 100 && task.onCpu; n++) lab.kernel.run(vcpu, { budget: 50 });
    lab.ftrace.unregister(ops);
    lab.ftrace.release(ops);
    expect(pending().sort()).toEqual([
      expect.stringMatching(/^wait until nobody is in ftrace_trampoline_/),
      "wait until nothing leads to plain",
    ]);
    lab.kernel.setNext(vcpu, task);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    lab.finish(vcpu);
    lab.kernel.agenda.finish();
    expect([pending(), trampolines()]).toEqual([[], []]);
  });

  test("is not given back at any instruction of a switch to a task that is in it", () => {
    const ops = traced("plain", ["leaf"], { handler: at("ftrace_stub") });
    const task = lab.kernel.tasks[0]!;
    const { address } = ops.trampoline!;
    const end = address + ops.trampoline!.size;
    stopIn(ops);
    lab.kernel.setNext(vcpu, lab.kernel.cpus[0]!.idle);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    for (let n = 0; n < 100 && task.onCpu; n++) lab.kernel.run(vcpu, { budget: 50 });
    lab.kernel.setNext(vcpu, task);
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    const before = new Set<string>();
    for (let n = 0; n < 10_000 && !(vcpu.rip >= address && vcpu.rip < end); n++) {
      before.add(lab.code.describe(vcpu.rip).replace(/\+.*/, ""));
      expect(holder(lab.kernel, address, addr(end)), lab.code.describe(vcpu.rip)).toBeDefined();
      const exit = vcpu.step();
      if (exit !== undefined) lab.kernel.answer(vcpu, exit);
    }
    expect(before).toContain("switch_to");
    expect(vcpu.rip).toBeGreaterThanOrEqual(address);
    lab.finish(vcpu);
    expect(holder(lab.kernel, address, addr(end))).toBeUndefined();
  });

  test("is used again by the next: nothing grows", () => {
    const once = () => {
      const ops = traced("plain", ["leaf"], { handler: at("ftrace_stub") });
      const { address } = ops.trampoline!;
      const struct = ops.struct.at;
      lab.ftrace.unregister(ops);
      lab.ftrace.release(ops);
      return [address, struct];
    };
    const first = once();
    for (let n = 0; n < 50; n++) expect(once()).toEqual(first);
  });
});

describe("the guard", () => {
  test("lets a handler run in an interrupt while it is at work in the task", () => {
    // timer_tick is called in interrupts, and leaf in the task; both have the same guarded handler.
    const ops = traced("guarded", ["leaf", "timer_tick"], { recursion: true });
    lab.begin(at("leaf"), [1n]);
    vcpu.run({ until: at("ftrace_hypercall_func"), budget: 1000 });
    vcpu.interrupt(VECTORS.TIMER_VECTOR);
    lab.finish(vcpu);
    expect(called).toEqual(["guarded", "guarded"]);
    lab.ftrace.unregister(ops);
  });

  test("refuses what a handler calls itself: the original runs", () => {
    // In guest code: a handler that goes on into the traced function's caller would recurse for ever without it.
    const ops = traced("recursive", ["leaf"], { recursion: true, handler: at("through_pointer") });
    expect(lab.call("leaf", [1]).result).toBe(2n);
    lab.ftrace.unregister(ops);
  });
});

describe("the switch", () => {
  test("off, nobody is called; on, all are again", () => {
    traced("plain", ["leaf"]);
    lab.ftrace.enabled = false;
    expect(lab.machine.memory.read(at("leaf"), SITE_SIZE)).toEqual(NOP5);
    lab.call("leaf", [1]);
    expect(called).toEqual([]);
    traced("registered while it is off", ["leaf"]);
    lab.call("leaf", [1]);
    expect(called).toEqual([]);
    lab.ftrace.enabled = true;
    lab.call("leaf", [1]);
    expect(called).toEqual(["registered while it is off", "plain"]);
  });
});

describe("a module", () => {
  test("that comes has its functions called for whom they fit, from the first call on", async () => {
    traced("all of a name", ["leaf"]);
    const patterns = lab.ftrace.makeOps({
      name: "of a module",
      handler: () => void called.push("of a module"),
    });
    await lab.loadModule("shapes", ["asm/shapes.S"]);
    lab.ftrace.setFilter(patterns, ["l*:mod:shapes"]);
    lab.ftrace.register(patterns);
    const leaf = lab.code.images.find(({ name }) => name === "shapes")!.symbol("leaf").address;
    lab.call(leaf, [1]);
    expect(called).toEqual(["of a module", "all of a name"]);
    lab.call("leaf", [1]);
    expect(called.slice(2)).toEqual(["all of a name"]);
  });

  test("that goes while its sites are being written is written to no more", async () => {
    const image = await lab.loadModule("shapes", ["asm/shapes.S"]);
    const { agenda } = lab.kernel;
    agenda.live = true;
    traced("plain", ["leaf", "tail"]);
    for (let n = 0; n < 5; n++) agenda.step(STRAND);
    lab.ftrace.removeImage(image);
    const before = image.mcountLocations.map((ip: Addr) => lab.machine.memory.read(ip, SITE_SIZE));
    for (let n = 0; n < 100 && !agenda.isEmpty; n++) {
      for (const { struct } of lab.kernel.cpus) struct.set("sync_done", struct.getNumber("sync_wanted"));
      goOn();
    }
    expect(image.mcountLocations.map((ip: Addr) => lab.machine.memory.read(ip, SITE_SIZE))).toEqual(before);
    expect(lab.ftrace.enabledFunctions().length).toBe(2);
  });

  test("that goes and comes again meanwhile has its sites written anew", async () => {
    const image = await lab.loadModule("shapes", ["asm/shapes.S"]);
    const { memory } = lab.machine;
    lab.kernel.agenda.live = true;
    traced("plain", ["leaf", "tail"]);
    const begun = lab.machine.snapshot();
    let isOver = false;
    for (let steps = 1; !isOver; steps++) {
      lab.machine.restore(begun);
      for (let n = 0; n < steps; n++) next();
      isOver = !lab.kernel.agenda.isPending(STRAND);
      lab.ftrace.removeImage(image);
      unload(memory, image);
      load(memory, image);
      lab.ftrace.addImage(image);
      while (lab.kernel.agenda.isPending(STRAND)) next();
      for (const { ip, target } of lab.ftrace.records)
        expect(memory.read(ip, SITE_SIZE), `${steps} steps`).toEqual(bytesOf(ip, target));
      expect(lab.ftrace.enabledFunctions().length, `${steps} steps`).toBe(4);
      expect(lab.kernel.log.lines.join("\n")).not.toContain("ftrace failed to modify");
    }
  });
});

/** The next step, every CPU serialising at once where that is waited for. */
function next(): void {
  if (!lab.kernel.agenda.ready().includes(STRAND))
    for (const { struct } of lab.kernel.cpus) struct.set("sync_done", struct.getNumber("sync_wanted"));
  lab.kernel.agenda.step(STRAND);
}

/** Does all that is asked for. */
function finishAll(): void {
  for (let n = 0; lab.kernel.agenda.isPending(STRAND); n++) {
    expect(n).toBeLessThan(500);
    next();
  }
}

describe("where one site cannot be rewritten", () => {
  let stuck: FtraceOps;
  beforeEach(() => {
    stuck = traced("stuck", ["leaf"]);
    lab.machine.memory.write(addr(lab.ftrace.siteOf(at("leaf"), "leaf").ip + 1), Uint8Array.of(0x55));
    lab.kernel.agenda.live = true;
  });

  test("who goes meanwhile stays away, whatever was wanted before", () => {
    const other = makeOps("other", ["tail"]);
    lab.ftrace.register(other);
    finishAll();
    lab.ftrace.unregister(stuck);
    lab.ftrace.unregister(other);
    finishAll();
    expect(lab.ftrace.registered).toEqual([stuck]);
    expect(lab.ftrace.siteOf(at("tail"), "tail").target.kind).toBe("nop");
  });

  test("whoever is not there gets what he wants", () => {
    const other = makeOps("other", ["tail"]);
    lab.ftrace.register(other);
    lab.ftrace.unregister(stuck);
    finishAll();
    expect(lab.ftrace.registered).toEqual([stuck, other]);
    expect(lab.ftrace.siteOf(at("tail"), "tail").target.kind).toBe("call");
  });
});
