// Bad input of every kind: one line on stderr that says what, where and what to do, nothing on stdout, status 2.

import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { afterAll, describe, expect, test } from "vitest";
import { missing, run } from "../image/fixtures.ts";
import { command, fixturePath, type Ran, Scratch, spawnCommand } from "./command.ts";

const scratch = new Scratch();
afterAll(() => scratch.remove());

function expectRefused({ status, stdout, stderr }: Ran, ...parts: string[]): void {
  for (const part of parts) expect(stderr).toContain(part);
  expect(stderr).toMatch(/^fentrylab: [^\n]+(; |\?)[^\n]+\n$/);
  expect(stderr).not.toMatch(/undefined|\[object|NaN|node:|\.ts:|\.js:|error:|fentrylab bug/);
  expect(stdout).toBe("");
  expect(status).toBe(2);
}

/** A command line and what its one line says, in parts. */
type Case = [line: string[], ...parts: string[]];

/** The title of a case, without the scratch folder. */
function titled(cases: Case[]): [title: string, ...Case][] {
  const shown = (line: string[]) => line.join(" ").replaceAll(join(scratch.folder, "/"), "") || "(nothing)";
  return cases.map((one) => [shown(one[0]), ...one]);
}

const FAULTS = scratch.file(
  "faults.S",
  `.text
add:      lea (%rdi,%rsi), %rax
          ret
divide:   mov %rdi, %rax
          cqo
          idiv %rsi
          ret
bug:      ud2
sse:      addsd %xmm0, %xmm1
          ret
write:    mov %rsi, (%rdi)
          ret
own:      movl $1, own(%rip)
          ret
jump:     jmp *%rdi
read:     mov (%rdi), %rax
          ret
recurse:  call recurse
          ret
spin:     jmp spin
stop:     hlt
leave:    vmcall
trap:     int3
    .data
word: .quad 1
`,
);

describe("command lines", () => {
  test.each(
    titled([
      [[], "no such command", "fentrylab demo", "fentrylab --help"],
      [["help", "nope"], "no such command"],
      [["nope"], "unknown command 'nope'", "`fentrylab --help`"],
      [["demos"], "unknown command 'demos'", "demo?"],
      [["--json"], "unknown option '--json'", "`fentrylab --help`"],
      [["demo", "--nope"], "unknown option '--nope'", "`fentrylab demo --help`"],
      [["demo", "--jsn"], "unknown option '--jsn'", "--json?", "`fentrylab demo --help`"],
      [["demo", "x"], "too many arguments", "'demo'"],
      [["demo", "--seed", "-1"], "--seed", "'-1'"],
      [["demo", "--seed=1e3"], "--seed", "'1e3'"],
      [["demo", "--seed", "9007199254740992"], "--seed", "'9007199254740992'"],
      [["demo", "--seed", ""], "--seed", "''"],
      [["call"], "missing required argument 'image'", "`fentrylab call --help`"],
      [["call", FAULTS], "missing required argument 'function'"],
      [["call", FAULTS, "spin", "--budget"], "'--budget <n>' argument missing"],
      [["call", FAULTS, "spin", "--budget", "x"], "--budget", "'x'"],
      [["call", FAULTS, "spin", "--budget", "0"], "--budget", "from 1 up", "'0'"],
      [["call", FAULTS, "spin", "--budget", "1.5"], "--budget", "'1.5'"],
      [["call", FAULTS, "add", "1x"], "'1x'", "0x"],
      [["call", FAULTS, "add", "-0x1"], "unknown option '-0x1'", "`fentrylab call --help`"],
      [["call", FAULTS, "add", "0x10000000000000000"], "'0x10000000000000000'"],
      [["call", FAULTS, "add", "-9223372036854775809"], "'-9223372036854775809'"],
      [["call", FAULTS, "add", "1", "2", "3", "4", "5", "6", "7"], "7 arguments", "at most 6"],
      [["disasm"], "missing required argument 'image'", "`fentrylab disasm --help`"],
      [["disasm", FAULTS, "add", "x"], "too many arguments", "'disasm'"],
      [["lockstep", FAULTS, "add"], "'--against <reference>' not specified", "`fentrylab lockstep --help`"],
      [["lockstep", FAULTS, "add", "--against", "bochs"], "'bochs'", "unicorn, host"],
      [["lockstep", FAULTS, "add", "--against", "host", "--limit", "0"], "--limit", "from 1 up", "'0'"],
      [["lockstep", FAULTS, "devide", "--against", "host"], "did you mean 'divide'?"],
      [["bench", "nope"], "'nope'", "engine"],
      [["bench", "engine", "--rounds", "0"], "--rounds", "'0'"],
    ]),
  )("%s", async (_, line, ...parts) => expectRefused(await command(...line), ...parts));
});

describe("images", () => {
  const folder = join(scratch.folder, "folder.S");
  mkdirSync(folder);
  const bad = scratch.file("bad.S", ".text\nf:\n  mov %rax, %nope\n  ret\n");
  const twice = scratch.file("twice.S", ".text\ng: ret\ng: ret\n");
  const wants = scratch.file("wants.S", ".text\ng: call absent\n");
  const bare = scratch.file("bare.S", ".text\n  nop\n");
  const empty = scratch.file("empty.S", "");
  const truncated = scratch.changed("truncated.o", "string.o", (bytes) => bytes.slice(0, 700));
  const cut = scratch.changed("cut.o", "string.o", (bytes) => bytes.slice(0, -1));
  const arm = scratch.changed("arm.o", "string.o", (bytes) => bytes.with(18, 40));
  const text = scratch.file("text.o", "int main(void) { return 0; }\n");
  const relocated = scratch.changed("got.o", "string.o", withGotRelocation);

  test.each(
    titled([
      [["call", FAULTS, "nosuch"], "faults has no symbol 'nosuch'", "fentrylab disasm"],
      [["call", FAULTS, "devide"], "'devide'", "did you mean 'divide'?"],
      [["disasm", FAULTS, "nosuch"], "faults has no symbol 'nosuch'"],
      [["disasm", FAULTS, "word"], "'word' of faults", "is data", "name a function"],
      [["call", bad, "f"], `${bad}:3:`, "'%nope'", "mov %rax, %nope", "mend that line"],
      [["disasm", bad], `${bad}:3:`, "'%nope'"],
      [["call", twice, "g"], `${twice}:3:`, `'g' is already defined at ${twice}:2`],
      [["call", wants, "g"], `${wants} .text+0x1`, "'absent'", "--with FILE"],
      [["call", bare, "f"], "bare has no symbol 'f'"],
      [["disasm", bare], bare, "no functions"],
      [["disasm", empty], empty, "no functions"],
      [["call", join(scratch.folder, "absent.o"), "f"], "absent.o", "ENOENT", "check the path"],
      [["call", scratch.folder, "f"], scratch.folder, "EISDIR", "check the path"],
      [["call", folder, "f"], folder, "EISDIR"],
      [["call", FAULTS, "add", "--with", "absent.o"], "absent.o", "ENOENT"],
      [["call", FAULTS, "add", "--with", fixturePath("lookup_fixed.o")], "lookup_fixed.o", "'lookup_count'"],
      [["call", scratch.file("empty.o", ""), "f"], "empty.o is empty", "gcc -c"],
      [["call", text, "f"], "text.o", "not an x86-64 ELF", "gcc -c"],
      [["call", truncated, "memcpy"], "truncated.o", "file of 700", "truncated", "build it again"],
      [["disasm", cut], "cut.o", "truncated", "build it again"],
      [["call", arm, "memcpy"], "arm.o", "machine 40", "not an x86-64 ELF", "gcc -c"],
      [["call", relocated, "memcpy"], "got.o", "relocation type 42", ".text", "-fno-pic"],
    ]),
  )("%s", async (_, line, ...parts) => expectRefused(await command(...line), ...parts));

  test("a name that two objects of one image use", async (ctx) => {
    const why = missing("as", "ld");
    if (why) ctx.skip(why);
    const parts = ["one", "two"].map((name) => {
      const source = scratch.file(
        `${name}.s`,
        `.text\n.type f, @function\nf: mov $${name.length}, %eax\nret\n`,
      );
      run("as", ["--64", source, "-o", `${source}.o`]);
      return `${source}.o`;
    });
    const both = join(scratch.folder, "both.o");
    run("ld", ["-r", ...parts, "-o", both]);
    expectRefused(await command("call", both, "f"), "2 objects", "'f'");
  });
});

describe("calls that do not return", () => {
  test.each(
    titled([
      [["call", FAULTS, "spin", "--budget", "1000"], "out of budget at spin+0x0", "--budget", "loop"],
      [["call", FAULTS, "divide", "1", "0"], "#DE at divide+0x5", "divisor"],
      [["call", FAULTS, "divide", "1", "0", "--json"], "#DE at divide+0x5"],
      [["call", FAULTS, "bug"], "#UD at bug+0x0", "ud2"],
      [["call", FAULTS, "sse"], "sse+0x0", "addsd %xmm0,%xmm1 (f2 0f 58 c8)", "-mgeneral-regs-only"],
      [["call", FAULTS, "read"], "read at 0x0000000000000000, not mapped", "read+0x0", "arguments"],
      [["call", FAULTS, "read", "-8"], "read at 0xfffffffffffffff8, not mapped"],
      [["call", FAULTS, "read", "0x8000000000000000"], "#GP(0) at read+0x0", "canonical"],
      [["call", FAULTS, "write", "4096"], "write at 0x0000000000001000, not mapped", "write+0x0"],
      [["call", FAULTS, "own"], "write at 0x", "not permitted", "own+0x0", ".data"],
      [["call", FAULTS, "jump", "4096"], "fetch", "0x0000000000001000, not mapped", "pointer"],
      [["call", FAULTS, "jump", "0x8000000000000000"], "#GP(0) at jump+0x0"],
      [["call", FAULTS, "word"], "fetch", "not permitted", "word+0x0"],
      [["call", FAULTS, "recurse"], "#DF(0) at recurse+0x0", "stack overflowed", "recursion"],
      [["call", FAULTS, "stop"], "halted at stop+0x0"],
      [["call", FAULTS, "leave"], "hypercall at leave+0x0"],
      [["call", FAULTS, "trap"], "#BP at trap+0x0"],
    ]),
  )("%s", async (_, line, ...parts) => expectRefused(await command(...line), ...parts));
});

// As processes: what this process does, the built command does too.
test.each(
  titled([
    [["demos", "--json"], "unknown command 'demos'"],
    [["call", FAULTS, "divide", "1", "0", "--json"], "#DE at divide+0x5"],
  ]),
)("as a process: %s", (_, line, ...parts) => expectRefused(spawnCommand(...line), ...parts));

/** `bytes` with its first relocation's type made R_X86_64_REX_GOTPCRELX, 42. */
function withGotRelocation(bytes: Uint8Array): Uint8Array {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const headers = Number(view.getBigUint64(40, true));
  for (let n = 0; n < view.getUint16(60, true); n++) {
    const header = headers + 64 * n;
    const SHT_RELA = 4;
    if (view.getUint32(header + 4, true) !== SHT_RELA) continue;
    view.setUint32(Number(view.getBigUint64(header + 24, true)) + 8, 42, true);
    return bytes;
  }
  throw new Error("the fixture has no relocations");
}
