// `fentrylab orc`: the entries of an object, where they come from, and what in its code cannot be unwound.

import { copyFileSync } from "node:fs";
import { afterAll, describe, expect, test } from "vitest";
import { NO_OBJTOOL, objtool } from "../unwind/objtool.ts";
import { command, fixturePath, Scratch } from "./command.ts";

interface OrcDocument {
  readonly image: string;
  readonly source: "sections" | "generated";
  readonly entries: {
    readonly address: string;
    readonly place: string;
    readonly type: string;
    readonly cfa: { readonly register: string; readonly offset: number };
    readonly bp: { readonly register: string; readonly offset: number };
    readonly signal: boolean;
  }[];
  readonly findings: { readonly kind: string; readonly address: string; readonly sentence: string }[];
}

const scratch = new Scratch();
afterAll(() => scratch.remove());

async function orc(...args: string[]): Promise<{ status: number | null; document: OrcDocument }> {
  const { status, stdout, stderr } = await command("orc", ...args, "--json");
  expect(stderr).toBe("");
  return { status, document: JSON.parse(stdout) as OrcDocument };
}

const SOURCE = `.include "macros.inc"
.text
untraced good
	push %rbp
	mov %rsp, %rbp
	call elsewhere
	pop %rbp
	ret
done good
untraced bad
	push %rdi
	ret
done bad
`;

describe("an object's entries", () => {
  const source = scratch.file("shapes.S", SOURCE);

  test("are listed with place, frame, rbp and type", async () => {
    expect(await command("orc", source, "good")).toEqual({
      status: 0,
      stderr: "",
      stdout: `4 entries of shapes, generated from its code
0xffffffffa0000000  good      cfa:sp+8   bp:(und)      CALL
0xffffffffa0000001  good+0x1  cfa:sp+16  bp:prevsp-16  CALL
0xffffffffa0000004  good+0x4  cfa:bp+16  bp:prevsp-16  CALL
0xffffffffa000000a  good+0xa  cfa:sp+8   bp:(und)      CALL
`,
    });
  });

  test("of code that cannot be unwound end in 1, and in a warning that says why", async () => {
    const { status, stdout } = await command("orc", source);
    expect(status).toBe(1);
    expect(stdout).toMatch(
      /^warning: bad\+0x1: a return with the stack or rbp not as at the function's entry \(CALL cfa:sp\+16 bp:\(und\)\)$/m,
    );
    const { document, ...run } = await orc(source);
    expect(run.status).toBe(1);
    expect(document.findings.map(({ kind, address }) => [kind, address])).toEqual([
      ["return-unbalanced", "0xffffffffa0000011"],
    ]);
    expect(stdout).toContain(document.findings[0]!.sentence);
  });

  test("are one document with --json", async () => {
    const { status, document } = await orc(source, "good");
    expect(status).toBe(0);
    expect(document).toMatchObject({ image: "shapes", source: "generated", findings: [] });
    expect(document.entries[1]).toEqual({
      address: "0xffffffffa0000001",
      place: "good+0x1",
      type: "CALL",
      cfa: { register: "sp", offset: 16 },
      bp: { register: "prevsp", offset: -16 },
      signal: false,
    });
  });

  test("begin with the function that is asked for, and end with it", async () => {
    const all = (await orc(fixturePath("queue.o"))).document.entries;
    const { entries } = (await orc(fixturePath("queue.o"), "process_queue")).document;
    expect(entries[0]!.place).toBe("process_queue");
    expect(entries.length).toBeGreaterThan(3);
    expect(entries.length).toBeLessThan(all.length);
    expect(entries.every(({ place }) => place.startsWith("process_queue"))).toBe(true);
    expect(all).toEqual(expect.arrayContaining(entries));
  });

  test("need no other object, but may have one", async () => {
    const alone = await orc(fixturePath("lookup_fixed.o"));
    const beside = await orc(fixturePath("lookup_fixed.o"), "--with", fixturePath("lookup_buggy.o"));
    const rules = ({ document }: typeof alone) => document.entries.map(({ address: _, ...rule }) => rule);
    expect(rules(beside)).toEqual(rules(alone));
    expect(beside.document.entries[0]!.address).not.toBe(alone.document.entries[0]!.address);
  });

  test.skipIf(NO_OBJTOOL !== undefined)(
    `are those of its sections where it has them${NO_OBJTOOL === undefined ? "" : `: ${NO_OBJTOOL}`}`,
    async () => {
      const path = scratch.file("queue.o", "");
      copyFileSync(fixturePath("queue.o"), path);
      objtool(path);
      const written = scratch.file("written.o", "");
      copyFileSync(`${path}.orc`, written);
      const read = await orc(written);
      const made = await orc(written, "--generate");
      expect([read.document.source, made.document.source]).toEqual(["sections", "generated"]);
      expect(read.document.entries).toEqual(made.document.entries);
      expect((await command("orc", written)).stdout).toContain("read from its ORC sections");
    },
  );
});

test("what has no entries is refused in one line", async () => {
  const bare = scratch.file("bare.S", ".data\n.quad 1\n");
  for (const [args, ...words] of [
    [[bare], "bare.S", "no functions"],
    [[fixturePath("queue.o"), "nosuch"], "queue has no symbol 'nosuch'"],
    [[fixturePath("queue.o"), "read_stats"], "queue has no symbol"],
    [["nosuch.o"], "nosuch.o cannot be read"],
  ] as const) {
    const { status, stdout, stderr } = await command("orc", ...args);
    expect([status, stdout]).toEqual([2, ""]);
    expect(stderr).toMatch(/^fentrylab: [^\n]+\n$/);
    for (const word of words) expect(stderr).toContain(word);
  }
});
