// Modules that load and unload while others run, by system calls; and what of TypeScript's goes with a machine's snapshots.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { Lab } from "../../src/lab.ts";
import { Userland } from "./userland.ts";

const PROGRAM = `
.macro module call, name
	lea \\name(%rip), %rdi
	sys \\call
	mov %rax, results(,%r15,8)
	inc %r15
.endm
program main
	xor %r15d, %r15d
	module NR_init_module, visitor
	movq $1, loaded(%rip)
	module NR_init_module, visitor		# it is there
	doze 5000
	module NR_delete_module, visitor
	module NR_delete_module, visitor	# it is not
	module NR_init_module, nobody
	module NR_init_module, long
	xor %edi, %edi
	sys NR_init_module
	mov %rax, results(,%r15,8)
	inc %r15
	module NR_init_module, visitor		# once more, at the same place
	xor %edi, %edi
	sys NR_exit
done main
.data
.p2align 3
loaded: .quad 0
results: .skip 8 * 16
visitor: .asciz "visitor"
nobody: .asciz "nobody"
long: .asciz "a name that no module has"
`;

describe("a module", () => {
  test("comes, runs, goes and comes again; and each answer is the kernel's", async () => {
    const userland = await Userland.open(PROGRAM);
    const { lab } = userland;
    const image = await lab.offerModule("visitor", [packagePath("kernel/visitor.o")]);
    const visit = image.symbol("visit").address;
    userland.start("main");
    expect(lab.modules.loaded).toEqual([]);
    const loaded = () => (userland.word("loaded") !== 0n ? "loaded" : undefined);
    expect(userland.run(100_000, {}, loaded).kind).toBe("stopped");
    expect(lab.modules.loaded).toEqual([{ name: "visitor", state: "MODULE_STATE_LIVE", users: 0 }]);
    expect(lab.code.describe(visit)).toMatch(/^visit\+0x0\/0x[0-9a-f]+ \[visitor\]$/);
    expect(lab.ftrace.at(visit)?.symbol).toBe("visit");
    const snapshot = lab.machine.snapshot();
    let gone = 0;
    const watch = () => {
      if (!lab.machine.memory.isMapped(visit, 1)) gone++;
      return undefined;
    };
    // The visitor's thread never ends by itself.
    expect(userland.run(200_000, {}, watch).kind).toBe("budget");
    expect(gone).toBeGreaterThan(0);
    const [EEXIST, ENOENT, EINVAL, EFAULT] = [-17n, -2n, -22n, -14n];
    expect([0, 1, 2, 3, 4, 5, 6, 7].map((n) => userland.word("results", n))).toEqual([
      0n,
      EEXIST,
      0n,
      ENOENT,
      ENOENT,
      EINVAL,
      EFAULT,
      0n,
    ]);
    expect(lab.kernel.tasks.map(({ comm }) => comm)).toContain("visitor");
    lab.machine.restore(snapshot);
    expect(lab.modules.loaded).toHaveLength(1);
    lab.dispose();
  });

  test("that was loaded or unloaded meanwhile is known again as it was, when a snapshot is restored", async () => {
    const lab = await Lab.open();
    const { machine, code, ftrace } = lab;
    const before = machine.snapshot();
    const sites = ftrace.records.length;
    const image = await lab.loadModule("visitor", [packagePath("kernel/visitor.o")]);
    const { address } = image.symbol("visit");
    const redirect = lab.redirect("visit", lab.symbol("leaf_new").address);
    redirect.enable();
    const during = machine.snapshot();
    expect(ftrace.records.length).toBe(sites + image.mcountLocations.length);
    machine.restore(before);
    expect([code.isText(address), code.images.length, ftrace.records.length]).toEqual([false, 1, sites]);
    expect(ftrace.at(address)).toBeUndefined();
    expect(code.ranges).toEqual([]); // the trampoline was made later
    machine.restore(during);
    expect([code.isText(address), code.images.length]).toEqual([true, 2]);
    expect(ftrace.at(address)?.ops).toBe(redirect.ops);
    expect(code.ranges).toHaveLength(1);
    expect(lab.call("visit", [1n]).result).toBe(101n);
    machine.restore(before);
    machine.restore(during);
    redirect.disable();
    expect(ftrace.at(address)?.ops).toBeUndefined();
    machine.restore(during);
    expect(ftrace.at(address)?.ops).toBe(redirect.ops);
    lab.dispose();
  });

  test("is loaded once, and offered before", async () => {
    const lab = await Lab.open();
    await lab.loadModule("visitor", [packagePath("kernel/visitor.o")]);
    expect(() => lab.modules.insert("visitor")).toThrow(expect.objectContaining({ code: "module-loaded" }));
    expect(() => lab.modules.insert("nobody")).toThrow(expect.objectContaining({ code: "no-module" }));
    lab.dispose();
  });
});

describe("a module whose beginning fails", () => {
  let folder: string;
  beforeAll(() => {
    folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test("is gone again, and the caller has its error", async () => {
    const source = join(folder, "failing.S");
    writeFileSync(
      source,
      `.include "macros.inc"
.text
traced init_module
	mov $-EBUSY, %eax
	ret
done init_module
`,
    );
    const userland = await Userland.open(PROGRAM.replace('"visitor"', '"failing"'));
    await userland.lab.offerModule("failing", [source]);
    userland.start("main");
    expect(userland.run()).toMatchObject({ kind: "idle" });
    expect([0, 1, 2].map((n) => userland.word("results", n))).toEqual([-16n, -16n, -2n]);
    expect(userland.lab.modules.loaded).toEqual([]);
    userland.lab.dispose();
  });
});
