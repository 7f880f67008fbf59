// What is read by people, whole and byte for byte in test/transcripts. UPDATE=1 writes it anew, to be read before it is
// committed.

import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { expect } from "vitest";
import { packagePath } from "../src/base/file.ts";

export function compare(name: string, lines: readonly string[]): void {
  const path = packagePath(`test/transcripts/${name}.txt`);
  const text = `${lines.join("\n")}\n`;
  if (process.env.UPDATE !== undefined) writeFileSync(path, text);
  expect(existsSync(path), `${path} is there; UPDATE=1 makes it`).toBe(true);
  expect(text).toBe(readFileSync(path, "utf8"));
}
