// ORC from code, one construct at a time: the entries that follow from it, or the finding that says why none do.

import { describe, expect, test } from "vitest";
import { Refusal } from "../../src/base/refuse.ts";
import { FINDINGS } from "../../src/unwind/orc/generate/finding.ts";
import { assembled, found, listed } from "./orcCode.ts";

const func = (body: string, name = "f") => `untraced ${name}\n${body}\ndone ${name}`;

interface Case {
  readonly body: string;
  /** What else the source has. */
  readonly rest?: string;
  /** Those within f, its part f.cold included, after the one that every call begins with: type if not CALL, cfa, bp. */
  readonly entries: readonly string[];
}

const CASES: Record<string, Case> = {
  "push and pop of what is not rbp": {
    body: "push %rbx\n push $1\n pushq 8(%rdi)\n pushfq\n add $24, %rsp\n pop %rbx\n ret",
    entries: ["f+0x1 sp+16 (und)", "f+0x3 sp+24 (und)", "f+0x6 sp+32 (und)", "f+0x7 sp+40 (und)"].concat([
      "f+0xb sp+16 (und)",
      "f+0xc sp+8 (und)",
    ]),
  },
  "rbp saved as any register": {
    body: "push %rbp\n mov %rdi, %rbp\n pop %rbp\n ret",
    entries: ["f+0x1 sp+16 prevsp-16", "f+0x5 sp+8 (und)"],
  },
  "a frame": {
    body: "push %rbp\n mov %rsp, %rbp\n sub $64, %rsp\n push %rbx\n sub %rdi, %rsp\n lea -72(%rbp), %rsp\n pop %rbx\n leave\n ret",
    entries: ["f+0x1 sp+16 prevsp-16", "f+0x4 bp+16 prevsp-16", "f+0x12 sp+8 (und)"],
  },
  "a frame that rsp leaves by mov": {
    body: "push %rbp\n mov %rsp, %rbp\n push %rdi\n mov %rbp, %rsp\n pop %rbp\n ret",
    entries: ["f+0x1 sp+16 prevsp-16", "f+0x4 bp+16 prevsp-16", "f+0x9 sp+8 (und)"],
  },
  "registers saved by mov": {
    body: "sub $24, %rsp\n mov %rbp, 8(%rsp)\n xor %ebp, %ebp\n mov 8(%rsp), %rbp\n add $24, %rsp\n ret",
    entries: ["f+0x4 sp+32 (und)", "f+0x9 sp+32 prevsp-24", "f+0x10 sp+32 (und)", "f+0x14 sp+8 (und)"],
  },
  "a copy of rsp": {
    body: "mov %rsp, %rax\n sub $16, %rsp\n push %rdi\n mov %rax, %rsp\n lea 8(%rsp), %rcx\n push %rdi\n lea -8(%rcx), %rsp\n ret",
    entries: ["f+0x7 sp+24 (und)", "f+0x8 sp+32 (und)", "f+0xb sp+8 (und)", "f+0x11 sp+16 (und)"].concat([
      "f+0x15 sp+8 (und)",
    ]),
  },
  "alignment with r10": {
    body: `lea 8(%rsp), %r10
 and $-32, %rsp
 pushq -8(%r10)
 push %rbp
 mov %rsp, %rbp
 push %r10
 sub $72, %rsp
 call g
 add $72, %rsp
 pop %r10
 pop %rbp
 lea -8(%r10), %rsp
 ret`,
    entries: ["f+0x9 r10+0 (und)", "f+0x11 r10+0 bp+0", "f+0x13 (bp-8) bp+0", "f+0x22 r10+0 bp+0"].concat([
      "f+0x23 r10+0 (und)",
      "f+0x27 sp+8 (und)",
    ]),
  },
  "alignment with r13, which is saved first": {
    body: `push %r13
 lea 16(%rsp), %r13
 and $-16, %rsp
 pushq -8(%r13)
 push %rbp
 mov %rsp, %rbp
 mov %r13, -8(%rbp)
 sub $24, %rsp
 call g
 mov -8(%rbp), %r13
 leave
 lea -16(%r13), %rsp
 pop %r13
 ret`,
    entries: ["f+0x2 sp+16 (und)", "f+0xb r13+0 (und)", "f+0x13 r13+0 bp+0", "f+0x17 (bp-8) bp+0"].concat([
      "f+0x24 r13+0 bp+0",
      "f+0x25 r13+0 (und)",
      "f+0x29 sp+16 (und)",
      "f+0x2b sp+8 (und)",
    ]),
  },
  "alignment in a frame": {
    body: "push %rbp\n mov %rsp, %rbp\n and $-64, %rsp\n sub $64, %rsp\n call g\n leave\n ret",
    entries: ["f+0x1 sp+16 prevsp-16", "f+0x4 bp+16 prevsp-16", "f+0x12 sp+8 (und)"],
  },
  "paths that part and meet": {
    body: "test %edi, %edi\n je 1f\n push %rbp\n call g\n pop %rbp\n ret\n1: push %rbx\n jmp 2f\n nop\n2: pop %rbx\n ret",
    entries: ["f+0x5 sp+16 prevsp-16", "f+0xb sp+8 (und)", "f+0xd sp+16 (und)", "f+0xf UNDEFINED"].concat([
      "f+0x10 sp+16 (und)",
      "f+0x11 sp+8 (und)",
    ]),
  },
  "code behind what does not return": {
    body: "push %rbx\n call panic\n nop\n1: ud2\n nop",
    entries: ["f+0x1 sp+16 (und)", "f+0x6 UNDEFINED"],
  },
  "a call of a function that has no return": {
    body: "call dead\n nop",
    rest: `${func("jmp dead2", "dead")}\n${func("1: hlt\n jmp 1b", "dead2")}`,
    entries: ["f+0x5 UNDEFINED"],
  },
  "a breakpoint, which execution goes on behind": {
    body: "int3\n push %rbx\n pop %rbx\n ret",
    entries: ["f+0x2 sp+16 (und)", "f+0x3 sp+8 (und)"],
  },
  "tail calls": {
    body: "test %edi, %edi\n je g\n jmp *%rax\n nop\n jmp *8(%rax)",
    entries: ["f+0xa UNDEFINED"],
  },
  "a switch over a table": {
    body: `push %rbx
 cmp $2, %edi
 ja 9f
 jmp *table(,%rdi,8)
1: push %rbp
 pop %rbp
9: pop %rbx
 ret
 nop
2: pop %rbx
 jmp g`,
    rest: `.section .rodata
 .quad g
table: .quad 1b, 2b, 9b
 .quad g
.text`,
    entries: ["f+0x1 sp+16 (und)", "f+0xe sp+24 prevsp-24", "f+0xf sp+16 (und)", "f+0x10 sp+8 (und)"].concat([
      "f+0x11 UNDEFINED",
      "f+0x12 sp+16 (und)",
      "f+0x13 sp+8 (und)",
    ]),
  },
  "a switch over distances": {
    body: `lea table(%rip), %rdx
 push %rbx
 movslq (%rdx,%rdi,4), %rax
 add %rdx, %rax
 jmp *%rax
1: push %rbp
 pop %rbp
2: pop %rbx
 ret`,
    rest: `.section .rodata
table: .long 1b - table, 2b - table
.text`,
    entries: ["f+0x8 sp+16 (und)", "f+0x12 sp+24 prevsp-24", "f+0x13 sp+16 (und)", "f+0x14 sp+8 (und)"],
  },
  "tables that follow one another": {
    body: `test %esi, %esi
 jne 5f
 jmp *one(,%rdi,8)
1: push %rbx
 jmp *two(,%rdi,8)
2: pop %rbx
5: ret`,
    rest: `.section .rodata
one: .quad 1b, 5b
two: .quad 2b
.text`,
    entries: ["f+0xc sp+16 (und)", "f+0x14 sp+8 (und)"],
  },
  "a part that was moved away as unlikely": {
    body: `push %rbx
 test %edi, %edi
 js f.cold
1: pop %rbx
 ret`,
    rest: `.section .text.unlikely, "ax", @progbits
.type f.cold, @function
f.cold: push %rbp
 call g
 pop %rbp
 jmp 1b
.size f.cold, . - f.cold`,
    entries: ["f+0x1 sp+16 (und)", "f+0xa sp+8 (und)", "f.cold sp+16 (und)"].concat([
      "f.cold+0x1 sp+24 prevsp-24",
      "f.cold+0x7 sp+16 (und)",
    ]),
  },
  "rbp as a pointer into the stack": {
    body: "push %rbp\n sub $32, %rsp\n lea 8(%rsp), %rbp\n mov %rdi, (%rbp)\n mov %rsi, 24(%rbp)\n call g\n add $32, %rsp\n pop %rbp\n ret",
    entries: [
      "f+0x1 sp+16 prevsp-16",
      "f+0x5 sp+48 prevsp-16",
      "f+0x1b sp+16 prevsp-16",
      "f+0x1c sp+8 (und)",
    ],
  },
  "a hint for each kind": {
    body: `unwind_hint_iret_regs
 push $0
 unwind_hint_regs 16
 pop %rax
 nop
 unwind_hint_regs_indirect 8
 call g
 pop %rsp
 nop
 unwind_hint_func
 push %rbx
 unwind_hint_func 32
 nop
 unwind_hint_end_of_stack
 push %rax
 unwind_hint_undefined
 pop %rax
 ret`,
    entries: ["f REGS_PARTIAL sp+0 (und) signal", "f+0x2 REGS sp+16 (und) signal"].concat([
      "f+0x3 REGS sp+8 (und) signal",
      "f+0x4 REGS (sp)+8 (und) signal",
      "f+0xa REGS sp+8 (und) signal",
      "f+0xb sp+8 (und)",
      "f+0xc sp+32 (und)",
      "f+0xd END_OF_STACK",
      "f+0xe UNDEFINED",
    ]),
  },
  "a stack switch between a save and a restore": {
    body: "push %rbp\n push %rbx\n unwind_hint_save\n mov %rsp, (%rdi)\n mov (%rsi), %rsp\n unwind_hint_restore\n pop %rbx\n pop %rbp\n ret",
    entries: ["f+0x1 sp+16 prevsp-16", "f+0x2 sp+24 prevsp-16", "f+0x9 sp+16 prevsp-16", "f+0xa sp+8 (und)"],
  },
  "a pt_regs that is restored: what rsp has gone past counts no more": {
    body: `unwind_hint_regs
 pop %r15
 pop %r14
 pop %r13
 pop %r12
 pop %rbp
 add $88, %rsp
 iretq`,
    entries: ["f REGS sp+0 (und) signal", "f+0x2 REGS_PARTIAL sp+120 prevsp-96 signal"].concat([
      "f+0x4 REGS_PARTIAL sp+112 prevsp-96 signal",
      "f+0x6 REGS_PARTIAL sp+104 prevsp-96 signal",
      "f+0x8 REGS_PARTIAL sp+96 prevsp-96 signal",
      "f+0x9 REGS_PARTIAL sp+88 (und) signal",
      "f+0xd REGS_PARTIAL sp+0 (und) signal",
    ]),
  },
};

describe("entries follow from", () => {
  test.each(Object.entries(CASES))("%s", async (_, { body, rest = "", entries }) => {
    const subject = await assembled(`${func(body)}\n${rest}`);
    expect(found(subject)).toEqual([]);
    const lines = listed(subject).map((line) => line.replace(" CALL ", " ").replaceAll(/ (cfa|bp):/g, " "));
    const own = lines.filter((line) => /^f(\.cold)?[+ ]/.test(line));
    expect(own[0] === "f sp+8 (und)" ? own.slice(1) : own).toEqual(entries);
  });
});

/** Sources with something wrong in f, and what is found. */
const WRONG: Record<string, { readonly source: string; readonly findings: readonly string[] }> = {
  "paths that meet with different stacks": {
    source: func("test %edi, %edi\n je 1f\n push %rdi\n1: nop\n ret"),
    findings: [
      `f+0x5: ${FINDINGS.contradiction} (CALL cfa:sp+8 bp:(und) from f+0x2; CALL cfa:sp+16 bp:(und) from f+0x4)`,
    ],
  },
  "a loop that pushes": {
    source: func("1: push %rdi\n dec %esi\n jne 1b\n ret"),
    findings: [`f: ${FINDINGS.contradiction} (CALL cfa:sp+8 bp:(und); CALL cfa:sp+16 bp:(und) from f+0x3)`],
  },
  "a path from a call and one from an interrupt": {
    source: func("test %edi, %edi\n jne 1f\n hlt\n unwind_hint_regs\n nop\n1: nop\n ud2"),
    findings: [
      `f+0x6: ${FINDINGS.contradiction} (CALL cfa:sp+8 bp:(und) from f+0x2; REGS cfa:sp+0 bp:(und) signal from f+0x5)`,
    ],
  },
  "a stack switch": {
    source: func("mov %rsp, (%rdi)\n mov %rdi, %rsp\n call g\n pop %rsp\n ret"),
    findings: [`f+0x3: ${FINDINGS["frame-lost"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "an alignment without a way back": {
    source: func("and $-16, %rsp\n call g\n ud2"),
    findings: [`f: ${FINDINGS["frame-lost"]} (CALL cfa:sp+8 bp:(und))`],
  },
  enter: {
    source: func("enter $16, $0\n leave\n ret"),
    findings: [`f: ${FINDINGS["frame-lost"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "an exchange with rsp": {
    source: func("xchg %rax, %rsp\n ret"),
    findings: [`f: ${FINDINGS["frame-lost"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "rbp overwritten": {
    source: func("xor %ebp, %ebp\n call g\n ret"),
    findings: [`f: ${FINDINGS["rbp-lost"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "rbp's copy overwritten": {
    source: func("push %rbp\n xor %ebp, %ebp\n movl $0, 4(%rsp)\n pop %rbp\n ret"),
    findings: [`f+0x3: ${FINDINGS["rbp-lost"]} (CALL cfa:sp+16 bp:prevsp-16)`],
  },
  "a frame beyond 16 bits": {
    source: func("sub $32760, %rsp\n call g\n add $32760, %rsp\n ret"),
    findings: [`f: ${FINDINGS["frame-too-large"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "a return with a word left": {
    source: func("push %rdi\n ret"),
    findings: [`f+0x1: ${FINDINGS["return-unbalanced"]} (CALL cfa:sp+16 bp:(und))`],
  },
  "a return with another rbp": {
    source: func("push %rbp\n mov %rdi, %rbp\n push %rbp\n add $16, %rsp\n ret"),
    findings: [`f+0x5: ${FINDINGS["rbp-lost"]} (CALL cfa:sp+24 bp:prevsp-16)`],
  },
  "a jump away with a word left": {
    source: func("push %rdi\n je g\n pop %rdi\n push %rdi\n jmp *%rax"),
    findings: [
      `f+0x1: ${FINDINGS["tail-unbalanced"]} (CALL cfa:sp+16 bp:(und))`,
      `f+0x9: ${FINDINGS["tail-unbalanced"]} (CALL cfa:sp+16 bp:(und))`,
    ],
  },
  "a return with registers on the stack": {
    source: func("unwind_hint_regs\n ret"),
    findings: [`f: ${FINDINGS["return-with-registers"]} (REGS cfa:sp+0 bp:(und) signal)`],
  },
  "jumps with registers on the stack, but for the one to a hint": {
    source: `${func("unwind_hint_regs\n je g\n je h\n jmp *%rax")}\n${func("unwind_hint_regs\n hlt\n ud2", "h")}`,
    findings: [
      `f: ${FINDINGS["tail-with-registers"]} (REGS cfa:sp+0 bp:(und) signal)`,
      `f+0x8: ${FINDINGS["tail-with-registers"]} (REGS cfa:sp+0 bp:(und) signal)`,
    ],
  },
  "an iret from elsewhere than its frame": {
    source: func(
      "unwind_hint_iret_regs\n push %rax\n iretq\n unwind_hint_regs 8\n iretq\n unwind_hint_func\n iretq",
    ),
    findings: [
      `f+0x1: ${FINDINGS["iret-unbalanced"]} (REGS_PARTIAL cfa:sp+8 bp:(und) signal)`,
      `f+0x3: ${FINDINGS["iret-unbalanced"]} (REGS cfa:sp+8 bp:(und) signal)`,
      `f+0x5: ${FINDINGS["iret-unbalanced"]} (CALL cfa:sp+8 bp:(und))`,
    ],
  },
  "a function that runs on into another": {
    source: `.type f, @function\nf: nop\n.size f, . - f\n.type h, @function\nh: ret\n.size h, . - h`,
    findings: [`f: ${FINDINGS["falls-through"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "a function that runs into nothing": {
    source: func("call g"),
    findings: [`f: ${FINDINGS["runs-out"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "bytes that are no instruction": {
    source: func("nop\n .byte 0x06\n ret"),
    findings: [`f: ${FINDINGS["runs-out"]} (CALL cfa:sp+8 bp:(und))`],
  },
  "a call within the function": {
    source: func("call 1f\n2: pause\n jmp 2b\n1: mov %rax, (%rsp)\n ret"),
    findings: [`f: ${FINDINGS["call-inside"]} (CALL cfa:sp+8 bp:(und))`],
  },
};

describe("what cannot be unwound is found:", () => {
  test.each(Object.entries(WRONG))("%s", async (_, { source, findings }) => {
    expect(found(await assembled(source))).toEqual(findings);
  });

  test("every kind of it", () => {
    const all = Object.values(WRONG).flatMap(({ findings }) => findings);
    for (const sentence of Object.values(FINDINGS))
      expect(
        all.some((finding) => finding.includes(sentence)),
        sentence,
      ).toBe(true);
  });

  test("and nothing is claimed where it shows", async () => {
    const types = async (body: string) => listed(await assembled(func(body)));
    // Where paths of different stacks met, nothing is known, up to the next hint.
    expect(await types("test %edi, %edi\n je 1f\n push %rdi\n1: nop\n unwind_hint_func\n ret")).toEqual([
      "f CALL cfa:sp+8 bp:(und)",
      "f+0x5 UNDEFINED",
      "f+0x6 CALL cfa:sp+8 bp:(und)",
      "end UNDEFINED",
    ]);
    // A return with a word left is the return's alone to answer for: the path to it is known.
    expect(await types("push %rdi\n nop\n ret")).toEqual([
      "f CALL cfa:sp+8 bp:(und)",
      "f+0x1 CALL cfa:sp+16 bp:(und)",
      "f+0x2 UNDEFINED",
    ]);
    // What a hint ends is no finding.
    const hinted = await assembled(func("mov %rdi, %rsp\n unwind_hint_undefined\n hlt\n ud2"));
    expect(found(hinted)).toEqual([]);
    expect(listed(hinted)).toEqual(["f CALL cfa:sp+8 bp:(und)", "f+0x3 UNDEFINED"]);
  });
});

describe("of many objects", () => {
  test("padding before a function that tools name as its prefix is none that runs on into it", async () => {
    const source = `.type __pfx_f, @function\n__pfx_f: nop\n nop\n.size __pfx_f, . - __pfx_f\n${func("ret").replace("untraced f", ".type f, @function\nf:")}`;
    expect(found(await assembled(source))).toEqual([]);
  });

  test("a weak function may be replaced by one that returns", async () => {
    const source = `${func("call dead\n ret")}\n.weak dead\n.type dead, @function\ndead: hlt\n jmp dead\n.size dead, . - dead`;
    expect(listed(await assembled(source)).slice(0, 2)).toEqual([
      "f CALL cfa:sp+8 bp:(und)",
      "end UNDEFINED",
    ]);
  });
});

test("hints that mean nothing are refused", async () => {
  const refusals = [
    [func("unwind_hint 7\n ret"), /hint at 0xffffffff81000000 is of kind 7/],
    [func("unwind_hint_restore\n ret"), /restores what none before it in its function saves/],
    [
      `${func("unwind_hint_save\n ret")}\n${func("unwind_hint_restore\n ret", "g")}`,
      /hint at 0xffffffff81000010 restores/,
    ],
  ] as const;
  for (const [source, message] of refusals) {
    const refused = await assembled(source).catch((error: unknown) => error);
    expect(refused).toBeInstanceOf(Refusal);
    expect((refused as Refusal).message).toMatch(message);
  }
});
