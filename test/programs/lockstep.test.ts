// Generated C programs, instruction by instruction beside native Unicorn and the host's processor.

import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import { addr, offset, toWord } from "../../src/base/addr.ts";
import type { Image } from "../../src/image/image.ts";
import { link } from "../../src/image/link.ts";
import { load } from "../../src/image/load.ts";
import { Machine } from "../../src/machine/machine.ts";
import { type LockstepResult, lockstep } from "../../src/reference/lockstep.ts";
import type { Reference } from "../../src/reference/reference.ts";
import type { ObjectFile } from "../../src/x86/object.ts";
import { missing } from "../image/fixtures.ts";
import { OPENERS } from "../reference/guest.ts";
import { build, type Level } from "./build.ts";
import { generate, type Program } from "./generator.ts";

const COUNT = 4;
/** Of each call, no more instructions. */
const STEPS = 400;
const TEXT = addr(0x1000_0000);
const STACK = addr(0x3000_0000);
const STACK_SIZE = 0x1_0000;
const RETURN = addr(0x0fff_f000);

const absent =
  process.arch !== "x64" || process.platform !== "linux" ? "not an x86-64 Linux machine" : missing("gcc");
if (absent !== undefined) console.log(`generated programs are not followed: ${absent}`);

describe.skipIf(absent !== undefined)("generated programs", () => {
  const programs = Array.from({ length: COUNT }, (_, n) => generate(1000 + n, false));
  let folder: string;
  const objects = new Map<Level, readonly ObjectFile[]>();

  beforeAll(async () => {
    folder = mkdtempSync(join(tmpdir(), "fentrylab-programs-"));
    const built = build("gcc", folder, [{ name: "plain", extensions: false, programs }]);
    for (const level of ["-O0", "-O2", "-Os"] as const) objects.set(level, (await built.get(level)!).objects);
    await Promise.all(built.values());
  });
  afterAll(() => rmSync(folder, { recursive: true }));

  test.for(Object.entries(OPENERS))("do every instruction as %s does it", async ([name, open], ctx) => {
    const reference = await open();
    if ("missing" in reference) {
      console.log(`not compared with ${name}: ${reference.missing}`);
      return ctx.skip(reference.missing);
    }
    let agreed = 0;
    for (const [level, files] of objects) {
      const guest = lowGuest(files);
      for (const call of programs.flatMap(({ calls }) => calls)) {
        const { difference, ended, ...counts } = await follow(guest, call, reference);
        expect(difference, `${level} ${call.function}(${call.input})`).toBeUndefined();
        expect(["reached", "limit"]).toContain(ended.kind);
        agreed += counts.agreed;
      }
    }
    reference.close();
    expect(agreed).toBeGreaterThan(100 * COUNT * objects.size);
  });
});

interface Guest {
  readonly machine: Machine;
  readonly image: Image;
}

/** At low addresses, where the host can have it too. */
function lowGuest(files: readonly ObjectFile[]): Guest {
  const machine = new Machine();
  const image = link(files, { text: TEXT });
  load(machine.memory, image);
  machine.memory.map(STACK, STACK_SIZE, { write: true, execute: false, user: false });
  return { machine, image };
}

function follow(
  { machine, image }: Guest,
  { function: name, input }: Program["calls"][number],
  reference: Reference,
): Promise<LockstepResult> {
  const vcpu = machine.vcpus[0]!;
  vcpu.set("rdi", BigInt(input.slice(0, -3)));
  vcpu.rsp = offset(STACK, STACK_SIZE - 8);
  machine.memory.writeWord(vcpu.rsp, toWord(RETURN));
  vcpu.rflags = 0x202n;
  vcpu.rip = image.symbol(name).address;
  return lockstep(machine, vcpu, reference, { until: RETURN, limit: STEPS });
}
