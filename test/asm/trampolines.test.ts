// docs/TRAMPOLINES.md has every instruction of the trampolines and of the live-patch handler, as they are disassembled.

import { readFileSync } from "node:fs";
import { beforeAll, describe, expect, test } from "vitest";
import { benchRedirect } from "../../bench/redirect.ts";
import { hex } from "../../src/base/addr.ts";
import { packagePath } from "../../src/base/file.ts";
import { Lab } from "../../src/lab.ts";
import { type Disassembler, loadDisassembler } from "../../src/x86/disassemble.ts";

const NAMES = [
  "ftrace_caller",
  "ftrace_ipmodify_caller",
  "ftrace_regs_caller",
  "klp_ftrace_handler",
] as const;
type Name = (typeof NAMES)[number];
const TEXT = readFileSync(packagePath("docs/TRAMPOLINES.md"), "utf8");
/** Stands for what is between its neighbours in the first trampoline. */
const GAP = "…";

interface Row {
  /** Of the first instruction, from the function's start. */
  readonly at: string;
  readonly instructions: readonly string[];
  readonly purpose: string;
}

let lab: Lab;
let disassembler: Disassembler;

beforeAll(async () => {
  lab = await Lab.open();
  disassembler = await loadDisassembler();
});

function sectionOf(name: Name): string {
  const section = TEXT.split(/^## /m).find((text) => text.startsWith(`${name}:`));
  return section ?? expect.fail(`there is no section '${name}: …'`);
}

function rowsOf(name: Name): Row[] {
  const rows = sectionOf(name).matchAll(/^\| (\+0x[0-9a-f]{2}) \| (.*?) \| (.*?) \|.*\|$/gm);
  return [...rows].map(([, at, spans, purpose]) => ({
    at: at!,
    instructions: [...spans!.matchAll(/`([^`]+)`|…/g)].map(([gap, text]) => text ?? gap),
    purpose: purpose!,
  }));
}

/** Offset and text of each instruction; targets as offsets, or by their names, as is data. */
function listingOf(name: Name): { readonly at: string; readonly text: string }[] {
  const { address, size } = lab.symbol(name);
  const bytes = lab.machine.memory.read(address, size);
  const from = (at: number) => `+0x${(at - address).toString(16).padStart(2, "0")}`;
  return disassembler.disassemble(bytes, address).map(({ at, text }) => {
    const datum = / -?0x[0-9a-f]+\(%rip\) {2}# (0x[0-9a-f]{16})$/.exec(text);
    if (datum !== null) {
      const symbol = lab.image.symbols.find((one) => hex(one.address) === datum[1]);
      return { at: from(at), text: text.replace(datum[0], ` ${symbol?.name}(%rip)`) };
    }
    const target = /^(?:call|j)\S* (0x[0-9a-f]{16})$/.exec(text)?.[1];
    if (target === undefined) return { at: from(at), text };
    const to = Number(BigInt.asIntN(64, BigInt(target)));
    const isInside = to >= address && to < address + size;
    const callee = lab.image.symbols.find(
      (symbol) => hex(symbol.address) === target && symbol.kind === "func",
    );
    return { at: from(at), text: text.replace(target, isInside ? from(to) : (callee?.name ?? target)) };
  });
}

/** What the rows say, with what is between their neighbours in place of gaps. */
function expand(instructions: readonly string[]): string[] {
  const first = listingOf("ftrace_caller").map(({ text }) => text);
  return instructions.flatMap((text, n) => {
    if (text !== GAP) return [text];
    const [from, to] = [first.indexOf(instructions[n - 1]!), first.indexOf(instructions[n + 1]!)];
    expect(to, `what is between ${instructions[n - 1]} and ${instructions[n + 1]}`).toBeGreaterThan(from);
    return first.slice(from + 1, to);
  });
}

describe.each(NAMES)("%s", (name) => {
  test("has each of its instructions in the document, in order, and no others are there", () => {
    const listing = listingOf(name);
    expect(expand(rowsOf(name).flatMap(({ instructions }) => instructions))).toEqual(
      listing.map(({ text }) => text),
    );
  });

  test("has them where the document says, and a purpose for each", () => {
    const listing = listingOf(name);
    let n = 0;
    for (const { at, instructions, purpose } of rowsOf(name)) {
      expect(listing[n]?.at, instructions[0]).toBe(at);
      expect(purpose, at).not.toBe("");
      n += expand(instructions).length;
    }
  });
});

test("how many there are, and are executed, is said as it is", async () => {
  const count = (name: Name) => listingOf(name).filter(({ text }) => !text.startsWith("nop")).length;
  const { rows } = await benchRedirect();
  const executed = (state: string, where: string) =>
    rows.find((row) => row.state === state)?.parts.find((part) => part.where === where)?.instructions;
  const says = (name: Name, ...parts: string[]) => {
    const section = sectionOf(name).replaceAll("\n", " ");
    for (const part of parts) expect(section).toContain(part);
  };
  const plain = executed("plain", "copy of ftrace_caller");
  expect(plain).toBe(count("ftrace_caller"));
  says("ftrace_caller", `${plain} instructions, all of them executed`);
  const ipmodify = executed("idle", "copy of ftrace_ipmodify_caller");
  expect(ipmodify).toBe(count("ftrace_ipmodify_caller"));
  says("ftrace_ipmodify_caller", `: ${ipmodify}. `);
  const regs = executed("registers", "copy of ftrace_regs_caller");
  says(
    "ftrace_regs_caller",
    `${count("ftrace_regs_caller")} instructions, of which a call executes ${regs}`,
    `or as many by the other way out`,
  );
  expect(executed("and one ops", "ftrace_regs_caller")).toBe(regs);
  const handler = (state: string) => executed(state, "klp_ftrace_handler");
  const [old, fresh] = [handler("in transition, to old"), handler("in transition, to new")];
  says(
    "klp_ftrace_handler",
    `${count("klp_ftrace_handler")} instructions and two NOPs`,
    `Outside a transition a call executes ${handler("idle")} of them`,
    `In a transition it is ${old} to the old body, and ${fresh} to the new one.`,
  );
});
