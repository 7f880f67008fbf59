// Generated ORC against what the kernel's own objtool writes, entry for entry, and our reader against objtool's.
//
// The fixtures with the flags that they are built with, at every level, with frame pointers and without; functions of
// shapes that the fixtures have not; generated programs; and the guest's assembly where it has no hints.

import { execFileSync } from "node:child_process";
import { chmodSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { describe, expect, test } from "vitest";
import { packagePath } from "../../src/base/file.ts";
import { parseElf } from "../../src/image/elf.ts";
import { describeRule, mergeEqual } from "../../src/unwind/orc/entry.ts";
import { tableInSections } from "../../src/unwind/orc/image.ts";
import { FIXTURES, inScratchFolder, missing } from "../image/fixtures.ts";
import { generate } from "../programs/generator.ts";
import { compile, compileShapes, NO_OBJTOOL, objtool, type Reference } from "./objtool.ts";
import { found, generateFor, listed, type Subject } from "./orcCode.ts";

const absent = NO_OBJTOOL ?? missing("gcc", "as");
if (absent !== undefined) console.log(`ORC is not compared with objtool's: ${absent}`);

const LEVELS = ["-O0", "-O1", "-O2", "-O3", "-Os"] as const;
const FRAMES = { without: [], with: ["-fno-omit-frame-pointer"] } as const;
const TRACED = ["-pg", "-mfentry", "-mrecord-mcount"];

interface Compared {
  readonly subject: Subject;
  readonly reference: Reference;
  readonly ours: readonly string[];
  readonly theirs: readonly string[];
}

function compare(path: string): Compared {
  const reference = objtool(path);
  const subject = generateFor([parseElf(path, new Uint8Array(readFileSync(path)))]);
  const table = tableInSections(generateFor([reference.object]).image);
  const entries = mergeEqual(table?.entries ?? []);
  // Where a section does not begin with code, objtool says so.
  const first = entries[0]?.type === "UNDEFINED" ? entries.slice(1) : entries;
  return { subject, reference, ours: listed(subject), theirs: listed({ ...subject, entries: first }) };
}

/** The entries of function `name`, its unlikely part included. */
function ofFunction(lines: readonly string[], name: string): string[] {
  return lines.filter((line) => line.replace(/(\.cold)?(\+0x[0-9a-f]+)? .*$/, "") === name);
}

function without(lines: readonly string[], names: readonly string[]): string[] {
  const excepted = new Set(names.flatMap((name) => ofFunction(lines, name)));
  // What is behind an excepted function is its affair too.
  return lines.filter((line) => !excepted.has(line) && !line.startsWith("end "));
}

describe.skipIf(absent !== undefined)("what objtool writes is generated", () => {
  describe.each(LEVELS)("at %s", (level) => {
    test.each(["without", "with"] as const)("for every fixture, %s frame pointers", (frames) => {
      inScratchFolder((folder) => {
        // A compiler that is gcc with other options at the end, so that build.sh's flags hold but for these.
        const cc = join(folder, "cc");
        writeFileSync(cc, `#!/bin/sh\nexec gcc "$@" ${[level, ...FRAMES[frames]].join(" ")}\n`);
        chmodSync(cc, 0o755);
        const out = join(folder, "objects");
        mkdirSync(out);
        execFileSync("sh", [join(FIXTURES, "build.sh"), out], { env: { ...process.env, CC: cc } });
        const objects = readdirSync(out).filter((name) => name.endsWith(".o"));
        expect(objects.length).toBeGreaterThanOrEqual(7);
        let entries = 0;
        for (const name of objects) {
          const { subject, reference, ours, theirs } = compare(join(out, name));
          expect(reference.warnings, name).toEqual([]);
          expect(found(subject), name).toEqual([]);
          expect(ours, name).toEqual(theirs);
          entries += ours.length;
        }
        expect(entries).toBeGreaterThan(100);
      });
    });
  });

  /** Where objtool takes a jump for a call of another function, and gives up or goes on as if rsp were the same. */
  const BEYOND = ["computed_goto", "long_jump"];

  test.each(
    LEVELS.flatMap((level) => [
      ["traced", [level, ...TRACED]] as const,
      ["with frame pointers", [level, "-fno-omit-frame-pointer"]] as const,
      ["without frame pointers", [level, "-fomit-frame-pointer", "-fno-jump-tables"]] as const,
      [
        "with a 16-aligned stack",
        [level, "-fomit-frame-pointer", "-mpreferred-stack-boundary=4", "-maccumulate-outgoing-args"],
      ] as const,
    ]),
  )("for functions of many shapes, %s: %s", (_, flags) => {
    inScratchFolder((folder) => {
      const { subject, ours, theirs } = compare(compileShapes(join(folder, "shapes.o"), flags));
      expect(without(ours, BEYOND)).toEqual(without(theirs, BEYOND));
      // All paths of the one are followed, and of the other what is left unknown is said to be.
      expect(found(subject).map((finding) => finding.replace(/\+.*: /, ": ").replace(/ \(.*/, ""))).toEqual([
        "long_jump: behind this instruction nothing says where the frame is; a hint can",
      ]);
      for (const name of BEYOND) expect(ofFunction(ours, name), name).not.toEqual(ofFunction(theirs, name));
      expect(ours.length).toBeGreaterThan(100);
    });
  });

  test("for generated programs", () => {
    inScratchFolder((folder) => {
      let functions = 0;
      for (let batch = 0; batch < 4; batch++) {
        const programs = Array.from({ length: 8 }, (_, n) => generate(1000 + 8 * batch + n, false));
        const source = join(folder, `batch${batch}.c`);
        writeFileSync(source, programs.map((program) => program.source).join("\n"));
        const prelude = ["-include", fileURLToPath(new URL("../programs/prelude.h", import.meta.url))];
        const more = batch % 2 === 0 ? TRACED : ["-fno-omit-frame-pointer"];
        const level = LEVELS[1 + (batch % 4)]!;
        const object = join(folder, `batch${batch}.o`);
        const { subject, ours, theirs } = compare(compile(object, source, [level, ...more, ...prelude]));
        expect(found(subject)).toEqual([]);
        expect(ours).toEqual(theirs);
        functions += subject.code.functions.length;
      }
      expect(functions).toBeGreaterThan(200);
    });
  });

  /** Assembly without hints, and the functions in it that objtool has no rule for. */
  const ASSEMBLY: Record<string, readonly string[]> = {
    "read.S": [],
    "thunk.S": [],
    // rbp is saved a second time within the frame, and used for something else: objtool goes on counting from it.
    "shapes.S": ["through_thunks"],
    // The same, without a second save.
    "faults.S": ["fault_stack", "fault_invalid"],
    // Of two frame records in one function objtool takes the second mov to rbp for the loss of the stack.
    "ftrace.S": ["ftrace_regs_caller"],
  };

  test.each(Object.entries(ASSEMBLY))("for asm/%s", (name, beyond) => {
    inScratchFolder((folder) => {
      const path = join(folder, "asm.o");
      execFileSync("as", ["--64", "-I", packagePath("asm"), "-o", path, packagePath(`asm/${name}`)]);
      const { subject, ours, theirs } = compare(path);
      expect(found(subject)).toEqual([]);
      expect(without(ours, beyond)).toEqual(without(theirs, beyond));
      for (const func of beyond) expect(ofFunction(ours, func)).not.toEqual(ofFunction(theirs, func));
    });
  });

  test("and read as objtool itself prints it", () => {
    inScratchFolder((folder) => {
      const { reference } = compare(compileShapes(join(folder, "shapes.o"), ["-O2"]));
      const { image } = generateFor([reference.object]);
      const starts = new Map(image.sections.map(({ name, address }) => [name, address]));
      // "text_section+1f: sp:sp+16 bp:prevsp-16 type:call end:0", in the order of the sections.
      const printed = reference.dump.map((line) => {
        const [, section, at, cfa, bp, type, end] =
          /^(.+)\+([0-9a-f]+): sp:(.+?) bp:(.+?) type:(.+) end:(\d)$/.exec(line) ?? expect.fail(line);
        const address = starts.get(section!)! + Number.parseInt(at!, 16);
        const rule = cfa === "(und)" ? (end === "1" ? "END_6_1" : "UNDEFINED") : `CALL cfa:${cfa} bp:${bp}`;
        expect(type).toBe("call");
        return `${address} ${rule}`;
      });
      const read = tableInSections(image)!.entries.map((entry) => `${entry.address} ${describeRule(entry)}`);
      expect(read.toSorted()).toEqual(printed.toSorted());
      for (const form of ["cfa:bp+16", "cfa:sp+16", "cfa:r10+0", "cfa:(bp-", "bp:bp+0"])
        expect(printed.join("\n")).toContain(form);
    });
  });
});
