// What ftrace says, as it is read: records, enabled_functions, refusals, the log of a site that cannot be rewritten.

import { beforeEach, describe, expect, test } from "vitest";
import { hex, offset } from "../../src/base/addr.ts";
import { Refusal } from "../../src/base/refuse.ts";
import type { FtraceOps, OpsOptions } from "../../src/ftrace/ftrace.ts";
import { Lab } from "../../src/lab.ts";
import { compare } from "../transcript.ts";

let lab: Lab;
const at = (name: string) => lab.symbol(name).address;

beforeEach(async () => {
  lab = await Lab.open();
  await lab.loadModule("shapes", ["asm/shapes.S"]);
});

function makeOps(name: string, filter: readonly string[], options: Partial<OpsOptions> = {}): FtraceOps {
  const ops = lab.ftrace.makeOps({ name, handler: at("ftrace_stub"), ...options });
  if (filter.length > 0) lab.ftrace.setFilter(ops, filter);
  return ops;
}

function traced(name: string, filter: readonly string[], options: Partial<OpsOptions> = {}): FtraceOps {
  const ops = makeOps(name, filter, options);
  lab.ftrace.register(ops);
  return ops;
}

function direct(name: string, filter: readonly string[], sharesIpmodify: boolean): FtraceOps {
  const ops = lab.ftrace.makeDirect({ name, target: at("direct_stub"), sharesIpmodify });
  lab.ftrace.setFilter(ops, filter);
  return ops;
}

/** The message of a refusal, and that nothing changed. */
function refused(act: () => unknown): string {
  const before = [lab.ftrace.enabledFunctions(), lab.ftrace.records.map(({ flags }) => flags)];
  try {
    act();
  } catch (error) {
    expect([lab.ftrace.enabledFunctions(), lab.ftrace.records.map(({ flags }) => flags)]).toEqual(before);
    return error instanceof Refusal ? error.message : expect.fail(String(error));
  }
  return expect.fail("that was not refused");
}

test("enabled_functions, as one comes after the other, and goes", () => {
  const lines: string[] = [];
  const show = (what: string) => lines.push(`# ${what}`, ...lab.ftrace.enabledFunctions(), "");
  show("nobody");
  const plain = traced("plain", ["leaf", "tail"]);
  show("a handler of leaf and tail");
  const registers = traced("registers", ["leaf"], { saveRegs: true });
  show("another one of leaf, which wants all registers: they share the list function");
  lab.ftrace.unregister(plain);
  show("the first gone: the other has its own trampoline back");
  lab.ftrace.unregister(registers);
  const guarded = traced("guarded", ["*:mod:shapes"], { recursion: true });
  show("a handler that wants to be guarded, of all functions of a module");
  lab.ftrace.setFilter(guarded, ["l*:mod:shapes"]);
  show("of those that begin with l");
  lab.ftrace.unregister(guarded);
  const typescript = traced("typescript", ["vfs_read"], { handler: () => {} });
  show("a handler in TypeScript");
  lab.ftrace.unregister(typescript);
  const calls = direct("direct", ["mem_read"], true);
  lab.ftrace.register(calls);
  show("a direct call");
  const redirect = lab.redirect("mem_read", at("mem_read_upper"));
  redirect.enable();
  show("a live patch of the same function, which the direct call allows for");
  lab.ftrace.unregister(calls);
  show("the live patch alone");
  redirect.settled = true;
  show("fully patched");
  lab.ftrace.register(plain);
  lab.ftrace.setFilter(plain, ["mem_*"]);
  show("fully patched, and traced");
  redirect.disable();
  lab.ftrace.enabled = false;
  show("ftrace is switched off: every site is a NOP");
  compare("ftrace-enabled-functions", lines);
});

test("records: where, in what, flags", () => {
  traced("plain", ["leaf", "tail"]);
  traced("registers", ["leaf"], { saveRegs: true });
  lab.ftrace.register(direct("direct", ["vfs_read"], false));
  lab.redirect("mem_read", at("mem_read_upper")).enable();
  const lines = lab.ftrace.records.map(
    ({ ip, symbol, module, flags }) =>
      `${hex(ip)} ${flags.toString(16).padStart(8, "0")} ${symbol} [${module}]`,
  );
  expect(lines.length).toBeGreaterThan(100);
  compare(
    "ftrace-records",
    lines.filter((line) => !/ 00000000 .*\[vmlinux\]/.test(line)),
  );
});

describe("refusals", () => {
  test("say with the kernel's error what cannot be, and what to do", () => {
    const lines: string[] = [];
    const show = (what: string, act: () => unknown) => lines.push(`# ${what}`, refused(act), "");
    const redirect = lab.redirect("leaf", at("leaf_new"));
    redirect.enable();
    const modify = { ipmodify: true, handler: at("klp_ftrace_handler") };
    show("IPMODIFY twice", () => traced("second patch", ["leaf"], modify));
    const other = traced("second patch", ["tail"], modify);
    show("IPMODIFY twice, by a filter", () => lab.ftrace.setFilter(other, ["tail", "leaf"]));
    show("IPMODIFY of all functions", () => traced("every function", [], modify));
    lab.ftrace.unregister(other);
    show("a direct call of a function that is patched", () =>
      lab.ftrace.register(direct("direct", ["leaf"], false)),
    );
    const first = direct("direct", ["mem_read"], false);
    lab.ftrace.register(first);
    show("two direct calls", () => lab.ftrace.register(direct("another direct", ["mem_*"], false)));
    show("a patch of a function with a direct call", () =>
      lab.redirect("mem_read", at("mem_read_upper")).enable(),
    );
    show("an unknown function", () => makeOps("tracer", ["no_such_function"]));
    show("a glob that nothing fits", () => makeOps("tracer", ["x*_nothing"]));
    show("a module that is not there", () => makeOps("tracer", ["leaf:mod:gone"]));
    show("a function without a site", () => makeOps("tracer", ["switch_to"]));
    show("the same, to be redirected", () => lab.redirect("switch_to", at("leaf_new")));
    show("a name that nothing has", () => lab.redirect("laef", at("leaf_new")));
    show("registered twice", () => lab.ftrace.register(first));
    const idle = makeOps("tracer", ["leaf"]);
    show("unregistered without having been registered", () => lab.ftrace.unregister(idle));
    show("given back while it is registered", () => lab.ftrace.release(first));
    lab.ftrace.release(idle);
    show("registered after it was given back", () => lab.ftrace.register(idle));
    show("the switch, which a live patch forbids", () => (lab.ftrace.enabled = false));
    redirect.disable();
    lab.ftrace.enabled = false;
    show("a live patch while ftrace is off", () => redirect.enable());
    compare("ftrace-refusals", lines);
  });

  test("of a site whose bytes are others than they should be: refused, undone, and told in the log", () => {
    const { memory } = lab.machine;
    const lines: string[] = [];
    const site = lab.ftrace.siteOf(at("tail"), "tail");
    const text = () => lab.ftrace.records.map(({ ip }) => memory.read(ip, 5));
    const spoil = (byte: number) => memory.write(offset(site.ip, 2), Uint8Array.of(byte));
    const before = text();
    const show = (what: string, byte: number, act: () => void) => {
      const [good] = memory.read(offset(site.ip, 2), 1);
      spoil(byte);
      const spoilt = text();
      const from = lab.kernel.log.lines.length;
      lines.push(`# ${what}`, refused(act), ...lab.kernel.log.lines.slice(from), "");
      expect(text()).toEqual(spoilt);
      spoil(good!);
    };
    const ops = makeOps("plain", ["leaf", "tail", "loop"]);
    show("to be called", 0x90, () => lab.ftrace.register(ops));
    expect(text()).toEqual(before);
    lab.ftrace.register(ops);
    show("to call somebody else", 0x90, () => traced("another", ["tail"]));
    show("to be a NOP", 0x90, () => lab.ftrace.unregister(ops));
    lab.ftrace.unregister(ops);
    expect(text()).toEqual(before);
    compare("ftrace-bug", lines);
  });
});
