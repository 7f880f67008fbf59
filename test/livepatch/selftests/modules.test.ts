// The scenarios' modules are what gcc makes of their sources.

import { execFileSync } from "node:child_process";
import { mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { expect, test } from "vitest";
import { packagePath } from "../../../src/base/file.ts";
import { NO_GCC } from "../../kernel/compiled.ts";

test.skipIf(NO_GCC !== undefined)("the objects in fixtures/livepatch are those of their sources", () => {
  const committed = packagePath("fixtures/livepatch");
  const folder = mkdtempSync(join(tmpdir(), "fentrylab-modules-"));
  try {
    const made = join(folder, "fixtures", "livepatch");
    mkdirSync(made, { recursive: true });
    mkdirSync(join(folder, "kernel"));
    execFileSync("sh", [join(committed, "build.sh"), join(folder, "kernel")]);
    const objects = (path: string) => readdirSync(path).filter((name) => name.endsWith(".o"));
    expect(objects(made)).toEqual(objects(committed));
    for (const name of objects(made))
      expect(readFileSync(join(made, name)).equals(readFileSync(join(committed, name))), name).toBe(true);
  } finally {
    rmSync(folder, { recursive: true });
  }
});
