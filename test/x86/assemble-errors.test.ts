// Every refusal names file, line, cause and text; nothing bad gets by in silence.

import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/base/refuse.ts";
import { assemble } from "../../src/x86/assemble.ts";

async function refusal(text: string): Promise<string> {
  const error = await assemble("f.S", text).catch((thrown: unknown) => thrown);
  if (!(error instanceof Refusal)) throw new Error(`not refused: ${text}`, { cause: error });
  expect(error.code).toBe("assembly");
  return error.message;
}

describe("refused, each with its line and cause", () => {
  test.each([
    ["nop\n  foo %rax, %rbx", "f.S:2", "unknown mnemonic 'foo'"],
    ["frobq", "f.S:1", "unknown mnemonic 'frobq'"],
    ["mov %rax", "f.S:1", "these operands do not fit 'mov'"],
    ["mov %rax, %ebx", "f.S:1", "these operands do not fit 'mov'"],
    ["mov %raxx, %rbx", "f.S:1", "'%raxx' is not a register"],
    ["mov (%rax,%ebx), %rcx", "f.S:1", "not an address in 64-bit code"],
    ["mov (%rax,%rsp), %rcx", "f.S:1", "%rsp cannot be an index"],
    ["mov (%rax,%rcx,3), %rcx", "f.S:1", "scale '3' is not 1, 2, 4 or 8"],
    ["mov (%rip,%rcx), %rcx", "f.S:1", "takes no index"],
    ["movb $300, %al", "f.S:1", "f.S:1"],
    ["add $0x80000000, %rax", "f.S:1", "f.S:1"],
    ["mov 0x80000000(%rax), %rcx", "f.S:1", "f.S:1"],
    ["movl $0x1ffffffff, (%rax)", "f.S:1", "f.S:1"],
    ["incl $5", "f.S:1", "f.S:1"],
    ["mov $5, (%rax)", "f.S:1", "needs a size suffix"],
    ["shl %cl, (%rax)", "f.S:1", "needs a size suffix"],
    ["add %ah, %r8b", "f.S:1", "%ah cannot stand beside %r8b"],
    ["call %rax", "f.S:1", "written with '*'"],
    ["jmp 0x1000", "f.S:1", "a branch wants a label"],
    ["lock nop", "f.S:1", "may not have this prefix"],
    ["lock mov %rax, (%rcx)", "f.S:1", "may not have this prefix"],
    ["rep popcnt %eax, %ecx", "f.S:1", "has this prefix already"],
    ["jmp 1f", "f.S:1", "undefined local label '1f'"],
    ["nop\njmp .Lnowhere", "f.S:2", "undefined local label '.Lnowhere'"],
    ["jmp 1b", "f.S:1", "no label '1:' before this '1b'"],
    ["a: nop\n\na: nop", "f.S:3", "'a' is already defined at f.S:1"],
    [".set a, 1\na: nop", "f.S:2", "'a' is already defined at f.S:1"],
    ["a: nop\n.set a, 1", "f.S:2", "'a' is already a label"],
    [".equiv a, 1\n.equiv a, 2", "f.S:2", "already has a value"],
    [".set a, b\n.set b, a\n.long a", "f.S:1", "is defined by itself"],
    [".frobnicate 3", "f.S:1", "unknown directive '.frobnicate'"],
    [".macro m\nnop", "f.S:1", ".macro without .endm"],
    [".rept 3\nnop", "f.S:1", ".rept without .endr"],
    [".endm", "f.S:1", ".endm without its beginning"],
    [".if 1\nnop", "f.S:1", "condition without .endif"],
    [".endif", "f.S:1", ".endif without .if"],
    [".if 1\n.else\n.else\n.endif", "f.S:3", ".else after .else"],
    [".if undefined_symbol\n.endif", "f.S:1", "'undefined_symbol' is not a number here"],
    [".macro m a:req\nnop\n.endm\nm", "f.S:4", "needs its argument 'a'"],
    [".macro m\nnop\n.endm\nm 1", "f.S:4", "takes 0 argument(s); '1' is left over"],
    [".macro m\nm\n.endm\nm", "f.S:2 (in macro m", "nested deeper"],
    ['.include "nowhere.inc"', "f.S:1", "cannot find 'nowhere.inc'"],
    ['.error "no such thing"', "f.S:1", "the source says: no such thing"],
    [".popsection", "f.S:1", ".popsection without .pushsection"],
    [".bss\n.long 5", "f.S:2", "holds no contents"],
    [".bss\nnop", "f.S:2", "holds no contents"],
    [".byte 256", "f.S:1", "256 does not fit 1 byte(s)"],
    [".byte foo", "f.S:1", "no relocation fits 1 byte(s)"],
    [".byte end - start\nstart: .skip 300\nend:", "f.S:1", "300 does not fit 1 byte(s)"],
    [".long foo + bar", "f.S:1", "no relocation can express this"],
    [".long foo - bar", "f.S:1", "'bar' is not in this section"],
    [".long foo * 2", "f.S:1", "'foo' is not a number here"],
    [".long 1 +", "f.S:1", "'1 +' ends too early"],
    [".long (1", "f.S:1", "missing ')'"],
    [".long 1 2", "f.S:1", "'2' is left over"],
    [".long 5 / 0", "f.S:1", "division by zero"],
    [".long 1 << 64", "f.S:1", "shift count 64"],
    [".long 09", "f.S:1", "not an octal number"],
    [".quad foo@GOT", "f.S:1", "only branches take a suffix"],
    ['.ascii "abc', "f.S:1", "string without an end"],
    ["nop\n/* open", "f.S:2", "comment without an end"],
    ['.ascii "\\q"', "f.S:1", "unknown escape '\\q'"],
    [".balign 3", "f.S:1", "alignment 3 is not a power of two"],
    ["loop far\n.skip 200\nfar:", "f.S:1", "200 does not fit 1 byte(s)"],
    ["jrcxz elsewhere", "f.S:1", "this branch has no long form"],
    ["nop\n.org 0", "f.S:2", ".org goes back, from 1 to 0"],
    [".globl n\n.set n, 5", "f.S:1", "only labels can be global"],
    [".type f, @banana", "f.S:1", "'banana' is not a symbol type"],
    ["a: .skip b - a + 1\nb:", "f.S:1", "do not settle"],
  ])("%j", async (text, at, cause) => {
    const message = await refusal(text);
    expect(message).toContain(at);
    expect(message).toContain(cause);
    expect(message).not.toContain("\n");
  });
});

test("a line of a macro is shown with the way there", async () => {
  const text = ".macro inner r\nmov %\\r, %bogus\n.endm\n.macro outer\nnop\ninner rax\n.endm\n\nouter";
  const message = await refusal(text);
  expect(message).toContain("f.S:2 (in macro inner, f.S:6 (in macro outer, f.S:9))");
  expect(message).toContain("'mov %rax, %bogus'");
});

test("a line of an included file is shown with that file", async () => {
  const include = () => "nop\nbogus";
  await expect(assemble("f.S", '.include "x.inc"', { include })).rejects.toThrow(/^x\.inc:2: /);
});
