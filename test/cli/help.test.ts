// What a newcomer asks first.

import { readFileSync } from "node:fs";
import { describe, expect, test } from "vitest";
import { command, spawnCommand } from "./command.ts";

const COMMON = ["--json", "--seed <n>", "--help"];
const COMMANDS: Record<string, string[]> = {
  demo: [],
  call: ["image", "function", "arguments", "--with <file>", "--budget <n>"],
  disasm: ["image", "function", "--with <file>"],
  orc: ["image", "function", "--with <file>", "--generate"],
  audit: [
    ...["--unwinder <which>", "--mode <mode>", "--image <file>", "--call <call>"],
    ...["--patients", "--vcpus <n>", "--budget <n>"],
  ],
  "check-trampoline": ["file", "--regs", "--ipmodify", "--cases <n>"],
  run: [
    ...["--vcpus <n>", "--copies <n>", "--rounds <n>", "--budget <n>", "--seeds <n>", "--record <file>"],
    ...["--every <n>", "--patches", "--weaken <what...>", "--log", "--log-level <level>", "--tasks"],
  ],
  replay: ["file", "--log", "--tasks"],
  lockstep: ["image", "function", "arguments", "--against <reference>", "--with <file>", "--limit <n>"],
  poke: [
    ...["--writer <which>", "--vcpus <n>", "--calls <n>", "--way <way>"],
    ...["--record <file>", "--replay <file>"],
  ],
  bench: ["what", "--rounds <n>"],
};

test("--help names every command", async () => {
  for (const line of [["--help"], ["-h"], ["help"]]) {
    const { status, stdout, stderr } = await command(...line);
    expect([status, stderr]).toEqual([0, ""]);
    for (const name of Object.keys(COMMANDS)) expect(stdout).toMatch(new RegExp(`^  ${name} .*[a-z]`, "m"));
    expect(stdout).toContain("--version");
  }
});

describe.each(Object.entries(COMMANDS))("%s --help", (name, own) => {
  test("says what it takes", async () => {
    const { status, stdout, stderr } = await command(name, "--help");
    expect([status, stderr]).toEqual([0, ""]);
    expect(stdout).toMatch(new RegExp(`^Usage: fentrylab ${name} `));
    for (const word of [...COMMON, ...own]) expect(stdout).toMatch(new RegExp(`^ +(-h, )?${word} +\\S`, "m"));
    // ... and takes no more than it says here.
    const listed = [...stdout.matchAll(/^ {2}(?:-h, )?([-a-z]+(?: <[\w.]+>)?) /gm)].map(([, word]) => word!);
    expect(listed.toSorted()).toEqual([...COMMON, ...own].toSorted());
  });

  test("is what `help` shows", async () => {
    expect(await command("help", name)).toEqual(await command(name, "--help"));
  });
});

test("--version is the package's", () => {
  const { version } = JSON.parse(readFileSync(new URL("../../package.json", import.meta.url), "utf8"));
  for (const flag of ["--version", "-V"]) {
    expect(spawnCommand(flag)).toEqual({ status: 0, stdout: `${version}\n`, stderr: "" });
  }
});
