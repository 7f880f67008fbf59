// What a redirected call costs is what a reader counts in the listing of the code it goes through.

import { beforeAll, describe, expect, test } from "vitest";
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
  readonly transition: boolean;
  readonly state: PatchState;
  readonly body: "leaf" | "leaf_new";
}

const PATHS: readonly Path[] = [
  { name: "patched", transition: false, state: "KLP_UNDEFINED", body: "leaf_new" },
  { name: "in transition, task patched", transition: true, state: "KLP_PATCHED", body: "leaf_new" },
  { name: "in transition, task unpatched", transition: true, state: "KLP_UNPATCHED", body: "leaf" },
  { name: "in transition, task undecided", transition: true, state: "KLP_UNDEFINED", body: "leaf" },
];

/** The parts of a redirected call, counted in the listing of what guest memory holds now. */
function count({ transition, state, body }: Path) {
  const site = listMemory(lab, disassembler, redirect.site.ip, SITE_SIZE);
  expect(site.map(textOf)).toEqual([expect.stringMatching(/^callq 0x/)]);
  const { address, size } = redirect.ops.trampoline;
  const trampoline = readPath(listMemory(lab, disassembler, address, size));
  // cmpb $0, transition; je: over the task's state. cmpl $KLP_PATCHED, state; jne: over the new body.
  const handler = readPath(listFunction(lab, disassembler, "klp_redirect_handler"), {
    je: !transition,
    jne: state !== "KLP_PATCHED",
  });
  const target = listFunction(lab, disassembler, body);
  // The old body goes on behind its site, which is counted above.
  const run = readPath(body === "leaf" ? target.slice(1) : target);
  return { site: site.length, trampoline: trampoline.length, handler: handler.length, body: run.length };
}

const sum = (parts: Record<string, number>) => Object.values(parts).reduce((total, part) => total + part, 0);

describe("a redirected call costs the instructions of site, trampoline, handler and body", () => {
  test.for(PATHS)("$name", (path) => {
    const task = lab.kernel.tasks[0]!;
    lab.kernel.setPatchState(task, path.state);
    redirect.transition = path.transition;
    redirect.enable();
    const { result, instructions } = lab.call("leaf", [1]);
    expect(result).toBe(path.body === "leaf" ? 2n : 101n);
    expect(instructions).toBe(sum(count(path)));
    redirect.disable();
  });

  test("and the trampoline is read through: no line of it is left out", () => {
    const { address, size } = redirect.ops.trampoline;
    const listing = listMemory(lab, disassembler, address, size);
    expect(readPath(listing)).toEqual(listing);
  });

  test("the paths differ in what they cost", () => {
    redirect.enable();
    const costs = PATHS.map((path) => sum(count(path)));
    redirect.disable();
    expect(new Set(costs).size).toBe(3);
  });
});

test("off, a call costs its own lines: the site's NOP is one", () => {
  const { instructions } = lab.call("leaf", [1]);
  expect(instructions).toBe(readPath(listFunction(lab, disassembler, "leaf")).length);
});

test("the tour tells the same", async () => {
  const { cost } = await gatherTour();
  redirect.transition = false;
  redirect.enable();
  const { site, trampoline, handler, body } = count(PATHS[0]!);
  redirect.disable();
  expect(cost.instructionsUnpatched).toBe(readPath(listFunction(lab, disassembler, "leaf")).length);
  expect(cost.instructionsRedirected).toBe(site + trampoline + handler + body);
  expect(cost.parts.map(({ instructions }) => instructions)).toEqual([site, trampoline, handler, body]);
});
