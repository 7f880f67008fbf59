// The instruction cases: the lines of test/cases/*.case (how to write one: test/cases/README.md).
//
// Their right-hand sides come from silicon (cases.native.test.ts). Refuses unreadable lines: CaseError,
// with file and line.

import { readdirSync, readFileSync } from "node:fs";
import type { Case } from "./cases-model.ts";
import { parseCase } from "./cases-text.ts";

export const CASES_FOLDER = new URL("../cases/", import.meta.url);

/** The case files' names, sorted: `alu.case`. */
export function caseFiles(): string[] {
  return readdirSync(CASES_FOLDER)
    .filter((name) => name.endsWith(".case"))
    .sort();
}

/** Every case of one family (`alu`), or of all, in the order of the files. */
export function loadCases(family?: string): Case[] {
  const files = family === undefined ? caseFiles() : [`${family}.case`];
  return files.flatMap((file) =>
    readFileSync(new URL(file, CASES_FOLDER), "utf8")
      .split("\n")
      .flatMap((text, index) => parseCase(text, file, index + 1) ?? []),
  );
}
