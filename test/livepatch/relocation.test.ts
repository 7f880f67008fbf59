// References of a patch's code to what its objects, and the kernel, keep to themselves: written when those are there, in the way that
// sources can say it and in the one that tools do; and what is refused.

import { execFileSync } from "node:child_process";
import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { packagePath, readPackageFile } from "../../src/base/file.ts";
import { Lab } from "../../src/lab.ts";
import type { PatchSpec } from "../../src/livepatch/patch.ts";
import { missing } from "../image/fixtures.ts";
import { withKlpSections } from "./klpSections.ts";

const REFER = "fixtures/livepatch/klp_refer.o";
const READELF = missing("readelf");

let folder: string;
let withSections: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  withSections = join(folder, "klp_refer.o");
  writeFileSync(withSections, withKlpSections(readPackageFile(REFER)));
});
afterAll(() => rmSync(folder, { recursive: true }));

let lab: Lab;
let pid: bigint;
beforeEach(async () => {
  lab = await Lab.open();
  pid = BigInt(lab.kernel.tasks[0]!.pid);
  await lab.offerModule("visitor", [packagePath("kernel/visitor.o")]);
  return () => lab.dispose();
});

const spec: PatchSpec = {
  name: "refer",
  objects: [{ name: "visitor", functions: [{ name: "visit", replacement: "refer_visit" }] }],
};
const visit = (before: number) =>
  lab.call(lab.code.images.find(({ name }) => name === "visitor")!.symbol("visit").address, [before]).result;

describe.each([
  ["as a source names them", () => packagePath(REFER)],
  ["in sections of their own", () => withSections],
])("%s", (_, path) => {
  test("they are written at once if the module is there", async () => {
    lab.modules.insert("visitor");
    await lab.patch(spec, [path()]);
    expect(visit(5)).toBe(1005n + pid);
  });

  test("they are written whenever the module comes, and lead nowhere when it has gone", async () => {
    await lab.patch(spec, [path()]);
    const main = lab.symbol("the_main").address;
    for (const _ of "12") {
      expect(lab.machine.memory.readWord(main)).toBe(0n);
      const visitor = lab.modules.insert("visitor");
      expect(lab.machine.memory.readNumber(main)).toBe(visitor.symbol("guest_main").address);
      expect(visit(5)).toBe(1005n + pid);
      lab.modules.remove("visitor");
    }
    expect(lab.machine.memory.readWord(main)).toBe(0n);
  });
});

test("such sections are what readelf takes for them", (ctx) => {
  if (READELF) ctx.skip(READELF);
  const sections = execFileSync("readelf", ["-SW", withSections], { encoding: "utf8" });
  expect(sections).toMatch(/\.klp\.rela\.visitor\.text +RELA /);
  expect(sections).toMatch(/\.klp\.rela\.vmlinux\.text +RELA /);
  const symbols = execFileSync("readelf", ["-sW", withSections], { encoding: "utf8" });
  expect(symbols.match(/ff20\S* +\.klp\.sym\./g)).toHaveLength(3);
});

describe("from a string of assembly", () => {
  /** A replacement of visit() that goes on to `symbol`. */
  const source = (symbol: string, more = "") => [
    {
      name: "fix",
      assembly: `.text\n${more}.type visit_new, @function\nvisit_new:\n\tcall ${symbol}\n\tret\n`,
    },
  ];
  const fix: PatchSpec = {
    name: "fix",
    objects: [{ name: "visitor", functions: [{ name: "visit", replacement: "visit_new" }] }],
  };

  test("a patch is made, and its module can go with it", async () => {
    lab.modules.insert("visitor");
    const patch = await lab.patch(fix, source(".klp.sym.vmlinux.sys_getpid"));
    expect(visit(5)).toBe(pid);
    expect(() => lab.modules.remove("fix")).toThrow("module 'fix' is in use (EAGAIN)");
    lab.livepatch.disable(patch);
    lab.modules.remove("fix");
    lab.modules.withdraw("fix");
    expect(visit(5)).toBe(6n);
    await lab.patch(fix, source(".klp.sym.visitor.visit")); // which calls itself, through its site
    expect(() => visit(5)).toThrow("stack overflowed");
  });

  const twins = (name: string) => ({
    name,
    assembly: ".text\n\t.type twin, @function\ntwin:\tret\n\t.size twin, . - twin\n",
  });

  test.each([
    [
      "a symbol that no module has",
      ".klp.sym.visitor.lodger",
      /symbol 'lodger' not found in symbol table of visitor \(EINVAL\)/,
    ],
    [
      "one that several have",
      ".klp.sym.twins.twin",
      /symbol 'twin' in object 'twins', of which 2 have that name \(EINVAL\)/,
    ],
    [
      "one of the kernel that it has not",
      ".klp.sym.vmlinux.lodger",
      /symbol 'lodger' not found in symbol table of vmlinux/,
    ],
    [
      "one of an object that the patch does not have",
      ".klp.sym.other.thing",
      /refers to 'thing' of object 'other', which the patch does not have/,
    ],
    [
      "a name that is none",
      ".klp.sym.visitor",
      /'\.klp\.sym\.visitor', which is no name of a livepatch symbol \(EINVAL\)/,
    ],
    ["what nobody defines", "nobody", /refers to 'nobody', which nothing loaded defines \(ENOENT\)/],
  ])("%s is refused, and nothing is left of the patch", async (_, symbol, problem) => {
    lab.modules.insert("visitor");
    await lab.offerModule("twins", [twins("one"), twins("two")]);
    lab.modules.insert("twins");
    const both = { ...fix, objects: [...fix.objects, { name: "twins", functions: [] }] };
    const before = lab.code.images.length;
    await expect(lab.patch(both, source(symbol))).rejects.toThrow(problem);
    expect([lab.livepatch.patches, lab.ftrace.registered, lab.code.images.length]).toEqual([[], [], before]);
    expect(visit(5)).toBe(6n);
    await lab.patch(both, source(".klp.sym.vmlinux.sys_getpid"));
    expect(visit(5)).toBe(pid);
  });

  test("a module whose symbols a patch does not find is not loaded", async () => {
    await lab.patch(fix, source(".klp.sym.visitor.lodger"));
    expect(() => lab.modules.insert("visitor")).toThrow("module 'visitor' was refused");
    expect(lab.kernel.log.lines.join("\n")).toMatch(
      /symbol 'lodger' not found in symbol table\n.*failed to initialize patch 'fix' for module 'visitor' \(-22\)/,
    );
    expect(lab.modules.loaded.map(({ name }) => name)).toEqual(["fix"]);
  });

  test("a replacement that the module does not have is refused", async () => {
    lab.modules.insert("visitor");
    const objects = [{ name: "visitor", functions: [{ name: "visit", replacement: "visit_newer" }] }];
    await expect(lab.patch({ name: "fix", objects }, source("visit_new"))).rejects.toThrow(
      "module 'fix' has no function of that name (ENOENT); did you mean 'visit_new'?",
    );
  });
});

test("the kernel's own symbols are not relocated with a module's", async () => {
  const file = join(folder, "astray.o");
  writeFileSync(
    file,
    withKlpSections(readPackageFile(REFER), () => "visitor"),
  );
  await expect(lab.offerModule("refer", [file])).rejects.toThrow(
    "invalid access to vmlinux symbol 'sys_getpid' from livepatch relocations of module 'visitor' (EINVAL)",
  );
});

test("while everybody runs, a module that is inserted or removed waits for live patching", async () => {
  const { agenda } = lab.kernel;
  await lab.patch(spec, [packagePath(REFER)]);
  const loaded = () => lab.modules.loaded.map(({ name, state }) => `${name} ${state}`);
  agenda.live = true;
  lab.modules.insert("visitor");
  expect(loaded()).toEqual(["refer MODULE_STATE_LIVE"]);
  agenda.live = false;
  agenda.finish();
  expect(loaded()).toEqual(["visitor MODULE_STATE_LIVE", "refer MODULE_STATE_LIVE"]);
  expect(visit(5)).toBe(1005n + pid);
  agenda.live = true;
  lab.modules.remove("visitor");
  expect(loaded()).toEqual(["visitor MODULE_STATE_GOING", "refer MODULE_STATE_LIVE"]);
  agenda.live = false;
  agenda.finish();
  expect(loaded()).toEqual(["refer MODULE_STATE_LIVE"]);
});
