// The transcripts against what the kernel's own scripts expect, where those are at hand: LINUX_SELFTESTS is their folder,
// tools/testing/selftests/livepatch of Linux 6.1. Nothing of them is kept here but names.

import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packagePath } from "../../../src/base/file.ts";

const FOLDER = process.env.LINUX_SELFTESTS;

/** Their names, the longer ones first, and ours. */
const NAMES = [
  ["test_klp_callbacks_demo2", "klp_demo2"],
  ["test_klp_callbacks_demo", "klp_demo"],
  ["test_klp_callbacks_mod", "klp_mod"],
  ["test_klp_callbacks_busy", "klp_busy"],
  ["test_klp_livepatch", "klp_hello"],
  ["test_klp_atomic_replace", "klp_replace"],
  ["test_klp_shadow_vars", "klp_shadow"],
  ["test_klp_state", "klp_state"],
  ["cmdline_proc_show", "cmdline_show"],
] as const;

/** Of each script, which of the transcripts are its. */
const SCRIPTS: Readonly<Record<string, RegExp>> = {
  "test-livepatch.sh": /^klp-(basic|multiple|replace)/,
  "test-callbacks.sh": /^klp-callbacks/,
  "test-shadow-vars.sh": /^klp-shadow/,
  "test-state.sh": /^klp-state/,
  "test-ftrace.sh": /^klp-ftrace/,
  "test-sysfs.sh": /^klp-sysfs/,
};

/** What live patching logs, the commands, and callbacks. What a scenario looks at besides is its own. */
const COMPARED =
  /^(livepatch:|% (modprobe|rmmod|echo) |modprobe: |klp_\w+: (pre|post)_(un)?patch_callback: )/;

interface Scenario {
  readonly title: string;
  readonly lines: readonly string[];
}

function expected(script: string): Scenario[] {
  const variables = new Map<string, string>();
  const [head, ...parts] = readFileSync(join(FOLDER ?? "", script), "utf8").split(/^start_test /m);
  const learn = (text: string) => {
    for (const [, name, value] of text.matchAll(/^(MOD_\w+)=(\w+)/gm)) variables.set(name!, value!);
  };
  learn(head!);
  return parts.map((part) => {
    learn(part);
    const title = /^"([^"]*)"/.exec(part)?.[1] ?? "";
    const text = /^check_result "((?:[^"\\]|\\.)*)"/m.exec(part)?.[1] ?? "";
    const plain = text
      .replace(/\$\{?(MOD_\w+)\}?/g, (_, name: string) => variables.get(name) ?? name)
      .replace(/\\"/g, '"');
    const ours = NAMES.reduce((all, [theirs, own]) => all.replaceAll(theirs, own), plain);
    return { title, lines: ours.split("\n").filter((line) => COMPARED.test(line)) };
  });
}

function transcripts(of: RegExp): Scenario[] {
  const folder = packagePath("test/transcripts");
  return readdirSync(folder)
    .filter((name) => of.test(name))
    .flatMap((name) => {
      const [first, ...lines] = readFileSync(join(folder, name), "utf8").split("\n");
      const title = /^===== TEST: (.*) =====$/.exec(first!)?.[1];
      return title === undefined ? [] : [{ title, lines: lines.filter((line) => COMPARED.test(line)) }];
    });
}

const byTitle = (a: Scenario, b: Scenario) => (a.title < b.title ? -1 : 1);

test.skipIf(FOLDER === undefined).each(Object.entries(SCRIPTS))("%s", (script, own) => {
  expect(transcripts(own).sort(byTitle)).toEqual(expected(script).sort(byTitle));
});
