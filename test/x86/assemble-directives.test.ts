// Whole sources, held against the object file that GNU as makes: contents, relocations, symbols.

import { describe, expect, test } from "vitest";
import { assemble } from "../../src/x86/assemble.ts";
import { gnuSummary, NO_GNU, ourSummary } from "./assemble-gnu.ts";

const SOURCES: Record<string, string> = {
  "references from code": `
    .text
    .globl g
    .type g, @function
g:  nop
l:  nop
.Ll: jmp g
    jmp l
    call l
    call ext
    jmp ext
    je ext
    call other
    call otherg
    jmp .Lo
    mov g(%rip), %rax
    mov l(%rip), %rax
    mov d(%rip), %rax
    mov dg+4(%rip), %rax
    movl $5, d(%rip)
    movb $5, ext(%rip)
    movw $5, ext+2(%rip)
    cmpq $0x12345, ext(%rip)
    mov $ext, %rax
    mov $ext, %eax
    movq $d, 8(%rax)
    movl $d+12, 8(%rax)
    movq $ext, ext(%rip)
    push $ext
    cmp $ext, %rax
    add $ext, %ecx
    cmpb $3, d
    mov d, %rax
    mov ext(,%rax,8), %rax
    mov d+4(%rax), %rax
    mov -8+ext(%rbp,%rcx), %rax
    mov %gs:ext, %rax
    mov %gs:ext(%rip), %rax
    incl %gs:d
    movabs $ext, %rax
    movabs $d-1, %r15
    movabs ext, %rax
    mov ext(%eax), %eax
    lea .Ll(%rip), %rax
    lea w(%rip), %rax
    call w
    jmp w
    jmp .Lo2@PLT
    call ext@PLT
    leaq ext-8(%rip), %rcx
    movb $(lb-la), %al
    mov $lb-la, %eax
    shl $lb-la, %eax
    jmp *table(,%rax,8)
    call *ext(%rip)
    lock incl d(%rip)
    .weak w
w:  ret
la: nop
lb: nop
    .size g, . - g
    .section .text.b, "ax"
other: ret
    .globl otherg
otherg: ret
.Lo: ret
    jmp g
    jmp l
    .data
d:  .quad g, l, d, ext, .Ll
table: .quad la
.Lo2:
    .globl dg
dg: .long ext, d, l, ext - ., d - ., l - ., . - d, ext - d
    .quad ext - ., w, l - d + 4
    .long g - . + 4
`,
  "a relocation table of the mcount kind": `
    .macro fentry_site
1:  call __fentry__
    .pushsection __mcount_loc, "a", @progbits
    .balign 8
    .quad 1b
    .popsection
    .endm
    .globl a, b
    .type a, @function
a:  fentry_site
    xor %eax, %eax
    ret
    .size a, .-a
    .type b, @function
b:  endbr64
    fentry_site
    ret
    .size b, .-b
`,
  "data of every size": `
    .data
    .byte 1, -1, 255, 'a', '\\n', 0x7f & ~3
    .word 1, 0xffff, -32768
    .short 5
    .value 6
    .2byte 7
    .long 1, -1, 0xffffffff
    .int 9
    .4byte 10
    .quad 1, -1, 0xffffffff81000000
    .8byte 12
    .ascii "a;b # c", "d\\"e\\\\\\n\\101\\x41"
    .asciz "one", "two"
    .string "three"
    .skip 5
    .space 3, 0xcc
    .zero 2
    .fill 3, 2, 0x1234
    .fill 2
    .fill 2, 8, 0x12345678
    .rept 3
    .byte 7
    .endr
`,
  "alignment and origins": `
    .text
    nop
    .p2align 4
    nop
    .balign 8
    ret
    .align 16, 0xcc
    nop
    .p2align 5,,10
    ret
    .p2align 5, 0x90
    nop
    .org 0x90
    nop
    .org . + 7, 0xf4
    ret
    . = . + 3
    .data
    .byte 1
    .balign 8
    .byte 2
    .p2align 3, 0xff
    .section .rodata
    .byte 1
    .align 4
    .long 2
    .bss
    .balign 64
buffer: .skip 100
    .balign 16
    .zero 4
`,
  "sections and their flags": `
    .section .init.text, "ax", @progbits
    ret
    .section .rodata.str, "a"
    .byte 1
    .section .data..percpu, "aw"
    .quad 0
    .section .discard, ""
    .long 1
    .section .note.x, "a", @note
    .long 3
    .section .mybss, "aw", @nobits
    .skip 8
    .section .text.unlikely
    ud2
    .section "quoted", "awx"
    nop
    .previous
    nop
    .pushsection .rodata
    .byte 9
    .pushsection .data
    .byte 8
    .popsection
    .byte 7
    .popsection
    ret
`,
  "local labels": `
1:  jmp 1f
    jmp 1b
1:  nop
2:  loop 2b
    jrcxz 1b
    jne 3f
    call 3f
3:  jmp . + 2
    jmp .
    jmp . - 2
    lea 1b(%rip), %rax
0:  jmp 0b
10: jmp 10b
`,
  "branches at the edge of their reach": `
    jmp a
    .skip 127
a:  jmp b
    .skip 128
b:  jne a
    .skip 120
    je b
    jmp d
    .skip 60
    jmp e
    .skip 62
    jmp d
d:  .skip 66
e:  jmp d
    .skip 124
    jmp e
    .globl back
back: .skip 126
    jmp back
    jmp back
    jmp back
`,
  "branches whose growing pushes others out of reach": `
${Array.from({ length: 40 }, (_, i) => `l${i}: jmp l${(i * 7 + 11) % 40}\n jne l${(i * 13 + 5) % 40}\n .skip ${(i * 5) % 9}\n .p2align ${i % 4}`).join("\n")}
`,
  symbols: `
    .globl exported, alias
    .weak maybe
    .set FIVE, 5
    six = FIVE + 1
    .equ seven, six + 1
    .equiv eight, 8
    .type object, @object
    .type exported, %function
    .data
object: .quad FIVE, six, seven, eight, maybe
    .size object, . - object
    .local hidden_one
hidden_one: .long 1
    .hidden exported
    .text
exported: mov $six, %eax
    add $FIVE, %rcx
    mov FIVE(%rsp), %rax
    mov FIVE*8+six(,%rax,8), %rdx
    .set FIVE, 50
    add $FIVE, %rcx
    .set alias, exported
    .set inner, exported + 3
    jmp inner
later = . - exported
    .size exported, . - exported
    .code64
`,
  "a symbol that is a number only later": `
    mov $SIZE, %eax
    mov SIZE(%rsp), %rcx
    .byte SIZE
    .long SIZE * 2, end - start
start: nop
    .skip COUNT
end: nop
    .skip (end - start) * 2, 0xcc
    SIZE = 24
    .set COUNT, 6
`,
  macros: `
    .macro save reg, at=8, extra:vararg
    movq %\\reg, \\at(%rsp)
    .ifnb \\extra
    save \\extra
    .endif
    .endm
    save rax
    save rbx, 16
    save rcx at=24
    save at=32, reg=rdx
    save rsi, 40, rdi, 48, r8, 56
    .macro label_it prefix:req value
\\prefix\\()_\\@: .long \\value + \\@
    .endm
    .macro twice what
    \\what
    \\what
    .endm
    twice "xor %eax, %eax; nop"
    twice ret
    .macro operands a, b
    .ascii "\\a|\\b;"
    .endm
    operands 8(%rax,%rbx)
    operands a -1
    operands 1 + 2, 3
    operands (a b)
    operands foo+8(%rip) %rax
    operands "x y", "z,w"
    operands $1 %rax
    operands a, b=5
    .macro nested
    .macro inner
    nop
    .endm
    inner
    .endm
    nested
    inner
    .macro early n
    .if \\n
    .exitm
    .endif
    hlt
    .endm
    early 1
    early 0
    .purgem early
    .irp r, rax, rcx, r8
    push %\\r
    .endr
    .irpc n, 123
    .byte \\n
    .endr
    .irp a, 1 2
    .irp b, 3 4
    .byte \\a\\b
    .endr
    .endr
    i = 0
    .rept 4
    .byte i
    i = i + 1
    .endr
`,
  conditions: `
    A = 1
    .if A
    .byte 1
    .else
    .byte 2
    .endif
    .if A - 1
    .byte 3
    .elseif A == 1
    .byte 4
    .elseif A
    .byte 5
    .else
    .byte 6
    .endif
    .ifdef A
    .byte 7
    .endif
    .ifdef B
    .byte 8
    .if nonsense here
    .else
    .endif
    .endif
    .ifndef B
    .byte 9
    .endif
    .ifc abc, abc
    .byte 10
    .endif
    .ifnc abc, abd
    .byte 11
    .endif
    .ifb
    .byte 12
    .endif
    .ifge A
    .byte 13
    .endif
    .iflt A
    .byte 14
    .endif
l:  .byte 15
m:  .if m - l == 1
    .byte 16
    .endif
`,
  "comments and separators": `
    nop # to the end
/* several
   lines */ nop; nop /* between */ ; ret
    .ascii "/* no # comment; */" ; .byte '#', ';
    mov $'\\'', %al
`,
  "alternatives in the kernel's way": `
oldinstr_start: call slow
oldinstr_end:
    .skip -(((alt_end - alt_start) - (oldinstr_end - oldinstr_start)) > 0) * ((alt_end - alt_start) - (oldinstr_end - oldinstr_start)), 0x90
after:
    .pushsection .altinstructions, "a"
    .long oldinstr_start - .
    .long alt_start - .
    .byte after - oldinstr_start
    .byte alt_end - alt_start
    .popsection
    .pushsection .altinstr_replacement, "ax"
alt_start: rdgsbase %rax
    wrgsbase %rax
    nop
alt_end:
    .popsection
    ret
slow: ret
`,
  prefixes: `
    lock
    incl (%rax)
    rep; movsb
    rep movsq
    lock cmpxchg16b %gs:0x40
    lock orb $1, d(%rip)
    notrack jmp *ext(%rip)
    bnd jmp l
    data16
    nop
l:  cs nopw 0(%rax,%rax,1)
    repz ret
d:  nop
`,
};

describe.skipIf(NO_GNU)(`sources${NO_GNU ? ` (skipped: ${NO_GNU})` : ""}`, () => {
  test.each(Object.entries(SOURCES))("%s: as GNU as has it", async (_, source) => {
    const ours = ourSummary(await assemble("t.s", source));
    expect(ours.sections.length).toBeGreaterThan(0);
    expect(ours).toEqual(gnuSummary(source));
  });
});

describe("where we differ from GNU as", () => {
  test("a call to a global function of the same section needs no linker", async () => {
    const { sections } = await assemble("t.s", ".globl f\nf: ret\ncall f");
    expect(sections[0]!.relocations).toEqual([]);
    expect([...sections[0]!.bytes]).toEqual([0xc3, 0xe8, 0xfa, 0xff, 0xff, 0xff]);
  });

  test("an alias is what it stands for", async () => {
    const { sections, symbols } = await assemble("t.s", ".globl f, g\nf: ret\n.set g, f\n.data\n.quad g");
    expect(symbols[sections[1]!.relocations[0]!.symbol]!.name).toBe("f");
    expect(symbols.find(({ name }) => name === "g")).toMatchObject({
      binding: "global",
      section: 0,
      value: 0,
    });
  });

  test("notes for compilers and debuggers make nothing", async () => {
    const text = '.ident "x"\n.file "y.c"\n.cfi_startproc\n.cfi_endproc\n.globl nowhere\n.hidden nowhere';
    const { sections, symbols } = await assemble("t.s", text);
    expect(sections.map(({ name, size }) => [name, size])).toEqual([[".text", 0]]);
    expect(symbols.map(({ name }) => name)).toEqual([".text"]);
  });

  test("a weak one does", async () => {
    const { sections } = await assemble("t.s", ".weak f\nf: ret\ncall f");
    expect(sections[0]!.relocations).toHaveLength(1);
  });

  test("two slashes begin a comment anywhere", async () => {
    const { sections } = await assemble("t.s", "// one\nnop // two");
    expect([...sections[0]!.bytes]).toEqual([0x90]);
  });
});

describe("includes", () => {
  const files: Record<string, string> = {
    "a.inc": '.include "b.inc"\nnop',
    "b.inc": ".set B, 7\n",
    "self.inc": '.include "self.inc"',
  };
  const include = (path: string) => files[path];

  test("are read where they stand", async () => {
    const { sections } = await assemble("t.s", '.include "a.inc"\n.byte B', { include });
    expect([...sections[0]!.bytes]).toEqual([0x90, 7]);
  });

  test("that include themselves are refused", async () => {
    await expect(assemble("t.s", '.include "self.inc"', { include })).rejects.toThrow(/nested deeper/);
  });
});
