// What is no patch that can be enabled, and what cannot be asked of one: each refusal as it is read, and that it changes nothing.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, expect, test } from "vitest";
import { offset } from "../../src/base/addr.ts";
import { Refusal } from "../../src/base/refuse.ts";
import type { Image } from "../../src/image/image.ts";
import { Lab } from "../../src/lab.ts";
import type { FunctionSpec, ObjectSpec, PatchSpec } from "../../src/livepatch/patch.ts";
import { compare } from "../transcript.ts";

/** A function that other objects of its module have by that name as well. */
const TWIN = `.include "macros.inc"
.text
.type twin, @function
.p2align 4
twin:
	.pushsection __mcount_loc, "a", @progbits
	.quad twin
	.popsection
	call __fentry__
	ret
done twin
`;
const ODD = `${TWIN}
untraced tiny
	ret
done tiny
untraced without_site
	mov $1, %eax
	ret
done without_site
traced odd
	ret
done odd
.data
.globl datum
datum: .quad 0
`;

let folder: string;
let lab: Lab;
let odd: Image;
beforeAll(async () => {
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
  const files = [
    ["odd.S", ODD],
    ["twin.S", TWIN],
  ].map(([name, text]) => {
    const path = join(folder, name!);
    writeFileSync(path, text!);
    return path;
  });
  lab = await Lab.open({ vcpus: 2 });
  odd = await lab.loadModule("odd", files);
  await lab.offerModule("later", files);
});
afterAll(() => {
  rmSync(folder, { recursive: true });
  lab.dispose();
});

const at = (name: string) => lab.symbol(name).address;
const known = () => [
  lab.livepatch.patches.map(({ name, enabled }) => [name, enabled]),
  lab.livepatch.transition?.target,
  lab.ftrace.enabledFunctions(),
  lab.modules.loaded,
];
const lines: string[] = [];

/** Notes why that is refused, and what the log says of it. */
function refused(what: string, ask: () => unknown): void {
  const before = known();
  const logged = lab.kernel.log.lines.length;
  let refusal: unknown;
  try {
    ask();
  } catch (error) {
    refusal = error;
  }
  if (!(refusal instanceof Refusal)) throw refusal ?? new Error(`${what}: not refused`);
  expect(known()).toEqual(before);
  const log = lab.kernel.log.lines.slice(logged).map((line) => line.replace(/^\[[^\]]*\] /, "  "));
  lines.push(`# ${what}`, refusal.message, ...log, "");
}

const enable = (objects: readonly ObjectSpec[], more: Partial<PatchSpec> = {}) =>
  lab.livepatch.enable({ name: "fix", objects, ...more });
const replacing = (name: string, more: Partial<FunctionSpec> = {}, object?: string): ObjectSpec => ({
  ...(object === undefined ? {} : { name: object }),
  functions: [{ name, replacement: at("leaf_new"), ...more }],
});

test("refusals at enable, and of what is asked of a patch", () => {
  refused("it replaces nothing", () => enable([]));
  refused("no such function", () => enable([replacing("laef")]));
  refused("the function is of another object", () => enable([replacing("odd")]));
  refused("two of that name", () => enable([replacing("twin", {}, "odd")]));
  refused("a third of two", () => enable([replacing("twin", { sympos: 3 }, "odd")]));
  refused("a second of one", () => enable([replacing("odd", { sympos: 2 }, "odd")]));
  refused("no call site", () => enable([replacing("without_site", {}, "odd")]));
  refused("shorter than a call site", () => enable([replacing("tiny", {}, "odd")]));
  refused("the replacement is data", () => enable([replacing("leaf", { replacement: at("datum") })]));
  refused("the replacement begins in the middle of a function", () =>
    enable([replacing("leaf", { replacement: offset(at("leaf_new"), 5) })]),
  );
  refused("the replacement is nowhere", () =>
    enable([replacing("leaf", { replacement: offset(odd.end, 0x10_0000) })]),
  );
  refused("nobody has heard of that module", () => enable([replacing("odd", {}, "od")]));
  refused("one function of two is fine", () => enable([replacing("leaf"), replacing("tiny", {}, "odd")]));
  refused("an object that is there twice", () => enable([replacing("leaf"), replacing("tail")]));
  refused("a function that is replaced twice", () =>
    enable([{ functions: [...replacing("leaf").functions, ...replacing("leaf", { sympos: 1 }).functions] }]),
  );
  refused("a function that replaces itself", () => enable([replacing("leaf", { replacement: at("leaf") })]));
  refused("a position below one", () => enable([replacing("leaf", { sympos: -1 })]));
  refused("a name that is no directory's", () => enable([replacing("leaf")], { name: "a/b" }));
  refused("no name", () => enable([replacing("leaf")], { name: "" }));
  refused("a module of its code that is going", () => {
    lab.kernel.agenda.live = true;
    try {
      lab.modules.remove("odd");
      enable([replacing("leaf", { replacement: odd.symbol("odd").address })]);
    } finally {
      lab.kernel.agenda.live = false;
      lab.kernel.agenda.finish();
      lab.modules.insert("odd");
    }
  });
  refused("a time that is none", () => {
    lab.livepatch.options = { retryEvery: 0 };
  });
  refused("a level that the log does not have", () => {
    lab.livepatch.options = { logLevel: "info" as "debug" };
  });
  refused("something to be weakened that is not known", () => {
    lab.livepatch.options = { weakened: ["everything" as "pending-ip"] };
  });
  refused("a callback says no", () => enable([{ ...replacing("leaf"), callbacks: { prePatch: () => -19 } }]));

  const patch = enable([replacing("leaf")], { states: [{ id: 7, version: 2 }] });
  refused("it is enabled already", () => enable([replacing("leaf")]));
  refused("it replaces a patch, and does not know a state of its", () =>
    enable([replacing("tail")], { name: "other", replace: true }),
  );
  refused("it knows an older version of a state", () =>
    enable([replacing("tail")], { name: "other", states: [{ id: 7, version: 1 }] }),
  );
  refused("nothing is to be turned round", () => lab.livepatch.reverse(patch));
  refused("nothing is to be forced", () => lab.livepatch.force(patch));
  refused("there is no such patch", () => lab.livepatch.patch("fxi"));

  const top = enable([replacing("tail")], { name: "top" });
  lab.livepatch.options = { onlyOnTop: true };
  refused("another patch is above it, and that counts", () => lab.livepatch.disable(patch));
  lab.livepatch.options = {};
  lab.livepatch.disable(top);
  lab.livepatch.disable(patch);
  refused("it was disabled", () => lab.livepatch.disable(patch));
  compare("klp-checks", lines);
});

test("what is loaded later is looked at when it comes, and is not let in if it does not fit", () => {
  const patch = enable([replacing("tiny", {}, "later")]);
  lines.length = 0;
  refused("too short", () => lab.modules.insert("later"));
  expect(lines.join("\n")).toContain("failed to initialize patch 'fix' for module 'later' (-22)");
  lab.livepatch.disable(patch);
  expect(lab.modules.insert("later").name).toBe("later");
  lab.modules.remove("later");
});

test("each of two functions of one name can be replaced", () => {
  const patch = enable([replacing("twin", { sympos: 2 }, "odd")]);
  expect(lab.sysfs.list("/sys/kernel/livepatch/fix/odd")).toEqual(["patched", "twin,2"]);
  const twins = odd.symbols.filter(({ name }) => name === "twin").sort((a, b) => a.address - b.address);
  const results = () => twins.map(({ address }) => lab.call(address, [1]).result);
  const fresh = lab.call("leaf_new", [1]).result;
  expect(results()).toEqual([expect.not.toSatisfy((value) => value === fresh), fresh]);
  lab.livepatch.disable(patch);
  expect(results()[1]).not.toBe(fresh);
});
