// What a redirected call costs is what a reader counts in the listing of the code it goes through.

import { afterEach, beforeAll, beforeEach, describe, expect, test } from "vitest";
import { hex } from "../../src/base/addr.ts";
import { SITE_SIZE } from "../../src/ftrace/site.ts";
import type { PatchState } from "../../src/kernel/layout.ts";
import { Lab } from "../../src/lab.ts";
import type { Redirect } from "../../src/livepatch/redirect.ts";
import { gatherTour } from "../../src/tour.ts";
import { type Disassembler, loadDisassembler } from "../../src/x86/disassemble.ts";
import { listFunction, listMemory, readPath, textOf } from "./listing.ts";

let lab: Lab;
let disassembler: Disassembler;
let redirect: Redirect;

beforeAll(async () => {
  lab = await Lab.open();
  disassembler = await loadDisassembler();
  redirect = lab.redirect("leaf", lab.symbol("leaf_new").address);
});

interface Path {
  readonly name: string;
  /** In a transition, what the task's state is. */
  readonly transition?: PatchState;
  readonly body: "leaf" | "leaf_new";
}

const PATHS: readonly Path[] = [
  { name: "patched", body: "leaf_new" },
  { name: "in transition, task patched", transition: "KLP_PATCHED", body: "leaf_new" },
  { name: "in transition, task unpatched", transition: "KLP_UNPATCHED", body: "leaf" },
  { name: "in transition, task undecided", transition: "KLP_UNDEFINED", body: "leaf_new" },
];

/** What the handler asks on the way (kernel/klp.c), in its order, and whether it jumps then. */
function handlerJumps({ transition }: Path): boolean[] {
  const [interrupted, entered] = [false, false];
  const [notLastToDisable, somebodyWaits] = [false, false];
  const isDefined = transition === "KLP_PATCHED";
  const state =
    transition === undefined
      ? [false]
      : transition === "KLP_UNPATCHED"
        ? [true, true]
        : [true, false, isDefined];
  return [interrupted, entered, ...state, notLastToDisable, somebodyWaits];
}

/** What the site is, in words. */
const siteText = () => listMemory(lab, disassembler, redirect.site.ip, SITE_SIZE).map(textOf);

/** The redirect's own. */
function listTrampoline(): string[] {
  const { address, size } = redirect.ops.trampoline ?? expect.fail("nothing is redirected");
  return listMemory(lab, disassembler, address, size);
}

/** The parts of a redirected call, counted in the listing of what guest memory holds now. */
function count(path: Path) {
  const site = siteText();
  expect(site).toEqual([expect.stringMatching(/^callq 0x/)]);
  const trampoline = readPath(listTrampoline());
  const handler = readPath(listFunction(lab, disassembler, "klp_ftrace_handler"), handlerJumps(path));
  const target = listFunction(lab, disassembler, path.body);
  // The old body goes on behind its site, which is counted above.
  const body = readPath(path.body === "leaf" ? target.slice(1) : target);
  return {
    site: site.length,
    trampoline: trampoline.length,
    handler: handler.length,
    body: body.length,
  };
}

const sum = (parts: Record<string, number>) => Object.values(parts).reduce((total, part) => total + part, 0);

describe("a redirected call costs the instructions of site, trampoline, handler and body", () => {
  beforeEach(() => redirect.enable());
  afterEach(() => redirect.disable());

  test.for(PATHS)("$name", (path) => {
    lab.kernel.setPatchState(lab.kernel.tasks[0]!, path.transition ?? "KLP_UNDEFINED");
    redirect.transition = path.transition !== undefined;
    const { result, instructions } = lab.call("leaf", [1]);
    redirect.transition = false;
    expect(result).toBe(path.body === "leaf" ? 2n : 101n);
    expect(instructions).toBe(sum(count(path)));
  });

  test("and the trampoline is read through: no line of it is left out", () => {
    expect(readPath(listTrampoline())).toEqual(listTrampoline());
  });

  test("the paths differ in what they cost", () => {
    expect(new Set(PATHS.map((path) => sum(count(path)))).size).toBe(3);
  });

  test("when everybody is patched, those of the new body, and the jump to it", () => {
    redirect.settled = true;
    const { result, instructions } = lab.call("leaf", [1]);
    const site = siteText();
    redirect.settled = false;
    expect(site).toEqual([`jmp ${hex(lab.symbol("leaf_new").address)}`]);
    expect(result).toBe(101n);
    expect(instructions).toBe(1 + readPath(listFunction(lab, disassembler, "leaf_new")).length);
  });
});

test("off, a call costs its own lines: the site's NOP is one", () => {
  const { instructions } = lab.call("leaf", [1]);
  expect(instructions).toBe(readPath(listFunction(lab, disassembler, "leaf")).length);
});

test("the tour tells the same", async () => {
  const { cost } = await gatherTour();
  redirect.enable();
  const { site, trampoline, handler, body } = count(PATHS[0]!);
  redirect.disable();
  expect(cost.instructionsUnpatched).toBe(readPath(listFunction(lab, disassembler, "leaf")).length);
  expect(cost.instructionsRedirected).toBe(site + trampoline + handler + body);
  expect(cost.parts.map(({ instructions }) => instructions)).toEqual([site, trampoline, handler, body]);
});
