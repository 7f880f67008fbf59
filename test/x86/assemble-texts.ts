// Instruction texts by the thousand, for holding our assembler against another one: the general-purpose and
// system mnemonics times the operand forms that kernel code uses. Some are not valid; the reference says which.

export const SIZES = ["b", "w", "l", "q"] as const;
export type Size = (typeof SIZES)[number];

export const REGISTERS: Record<Size, readonly string[]> = {
  b: ["%al", "%cl", "%bl", "%ah", "%sil", "%r9b", "%r13b"],
  w: ["%ax", "%cx", "%si", "%r9w", "%r12w"],
  l: ["%eax", "%ecx", "%esp", "%edi", "%r8d", "%r13d"],
  q: ["%rax", "%rcx", "%rsp", "%rbp", "%rdi", "%r8", "%r12", "%r13", "%r15"],
};

export const MEMORY: readonly string[] = [
  "(%rax)",
  "8(%rbx)",
  "0x1234(%rcx)",
  "-8(%rbp)",
  "(%rbp)",
  "-0x81(%rdi)",
  "(%rsp)",
  "16(%rsp)",
  "(%r12)",
  "(%r13)",
  "127(%r14)",
  "128(%r15)",
  "(%rax,%rcx,4)",
  "(%rbp,%rdx)",
  "0x10(%r8,%r9,8)",
  "(%rsp,%rbp,2)",
  "(%r13,%r12,1)",
  "(,%rax,8)",
  "0x1000(,%rcx,4)",
  "0x7000",
  "0x10(%rip)",
  "-4(%rip)",
  "%gs:0x28",
  "%gs:0x10(%rax)",
  "%gs:0x20(%rip)",
  "%fs:0",
  "%fs:(%rdx,%rdi,2)",
  "%ds:(%rax)",
  "%ss:(%rbp)",
  "%ss:(%rax)",
  "%cs:0x10(%rip)",
  "(%eax)",
  "8(%r9d,%ecx,2)",
];

/** A few of the memory forms, one of each encoding class. */
const FEW_MEMORY = ["(%rax)", "16(%rsp)", "0x10(%r8,%r9,8)", "0x1000(,%rcx,4)", "%gs:0x28", "0x10(%rip)"];

export const IMMEDIATES: Record<Size, readonly string[]> = {
  b: ["$0", "$1", "$-1", "$127", "$0x80", "$-128", "$0xff", "$'a'"],
  w: ["$0", "$1", "$-1", "$127", "$0x80", "$-128", "$-129", "$0xff", "$0xff80", "$0xffff", "$-32768"],
  l: [
    "$0",
    "$1",
    "$-1",
    "$0x80",
    "$-128",
    "$-129",
    "$0xffff",
    "$0x7fffffff",
    "$0x80000000",
    "$0xffffffff",
    "$~0x10",
  ],
  q: [
    "$0",
    "$1",
    "$-1",
    "$0x80",
    "$-128",
    "$-129",
    "$0x7fffffff",
    "$-0x80000000",
    "$0xffffffff80000000",
    "$(1<<9)|2",
    "$~0x200",
  ],
};

const ALU = ["add", "or", "adc", "sbb", "and", "sub", "xor", "cmp", "test", "mov"];
const UNARY = ["inc", "dec", "neg", "not", "mul", "imul", "div", "idiv"];
const SHIFTS = ["shl", "shr", "sar", "sal", "rol", "ror", "rcl", "rcr"];
const CONDITIONS = [
  "o no b c nae ae nb nc e z ne nz be na a nbe s ns p pe np po l nge ge nl le ng g nle",
].flatMap((line) => line.split(" "));

function* alu(): Generator<string> {
  for (const op of ALU)
    for (const size of SIZES) {
      const regs = REGISTERS[size];
      for (const a of regs) for (const b of regs) for (const s of ["", size]) yield `${op}${s} ${a}, ${b}`;
      const r = regs[1]!;
      for (const m of MEMORY)
        for (const reg of [regs[0]!, regs.at(-1)!]) {
          yield `${op} ${reg}, ${m}`;
          yield `${op}${size} ${reg}, ${m}`;
          if (op === "mov" || op === "test" || size !== "b") yield `${op} ${m}, ${reg}`;
          yield `${op}${size} ${m}, ${reg}`;
        }
      for (const i of IMMEDIATES[size]) {
        for (const reg of [regs[0]!, r, regs.at(-1)!]) yield `${op} ${i}, ${reg}`;
        yield `${op}${size} ${i}, ${regs.at(-1)!}`;
        for (const m of FEW_MEMORY) yield `${op}${size} ${i}, ${m}`;
      }
    }
}

function* moves(): Generator<string> {
  for (const m of ["(%rsi)", "%gs:0x10", "8(%r8,%rax,2)", "0x40(%rip)"]) {
    for (const [op, to] of [
      ["movzbw", "%cx"],
      ["movzbl", "%ecx"],
      ["movzbq", "%r9"],
      ["movzwl", "%r9d"],
      ["movzwq", "%rcx"],
      ["movsbw", "%cx"],
      ["movsbl", "%r8d"],
      ["movsbq", "%rcx"],
      ["movswl", "%ecx"],
      ["movswq", "%rcx"],
      ["movslq", "%rcx"],
      ["movzb", "%ecx"],
      ["movsb", "%rcx"],
    ])
      yield `${op} ${m}, ${to}`;
  }
  for (const op of ["movzx", "movsx", "movzbl", "movsbl"])
    for (const r of REGISTERS.b) yield `${op} ${r}, %esi`;
  for (const op of ["movzwl", "movswl", "movzx", "movsx"])
    for (const r of REGISTERS.w) yield `${op} ${r}, %edx`;
  for (const r of REGISTERS.b.filter((name) => name !== "%ah"))
    yield* [`movzbq ${r}, %r10`, `movsbq ${r}, %r10`, `movzbw ${r}, %ax`];
  for (const r of REGISTERS.w) yield* [`movzwq ${r}, %r10`, `movswq ${r}, %r10`];
  for (const r of REGISTERS.l) yield* [`movslq ${r}, %r10`, `movslq ${r}, %rax`, `movsxd ${r}, %rax`];
  for (const i of [
    "0",
    "-1",
    "0x7fffffff",
    "0x80000000",
    "0xffffffff",
    "0x123456789abcdef0",
    "-0x80000001",
    "0xffffffff81000000",
  ]) {
    for (const r of ["%rax", "%rdi", "%r11"])
      yield* [`mov $${i}, ${r}`, `movq $${i}, ${r}`, `movabs $${i}, ${r}`, `movabsq $${i}, ${r}`];
  }
  for (const r of ["%al", "%ax", "%eax", "%rax"])
    yield* [`movabs 0x123456789abcdef0, ${r}`, `movabs ${r}, 0x123456789abcdef0`, `movabs ${r}, %gs:0x28`];
  for (const m of MEMORY) for (const r of ["%rax", "%r11", "%esp", "%bx"]) yield `lea ${m}, ${r}`;
  yield* ["leaq 8(%rsp), %rsp", "leal (%rax,%rax,4), %eax", "leaw 1(%rax), %ax"];
  for (const s of ["%ds", "%es", "%fs", "%gs", "%ss", "%cs"]) {
    for (const r of ["%ax", "%eax", "%rax", "%r9d", "(%rax)", "%gs:8"])
      yield* [
        `mov ${s}, ${r}`,
        `mov ${r}, ${s}`,
        `movw ${s}, ${r}`,
        `movl ${s}, ${r}`,
        `movq ${s}, ${r}`,
        `movl ${r}, ${s}`,
      ];
  }
  for (const c of ["%cr0", "%cr2", "%cr3", "%cr4", "%cr8", "%db0", "%db6", "%db7", "%dr0", "%dr6", "%dr7"]) {
    for (const r of ["%rax", "%rdi", "%r15"])
      yield* [`mov ${c}, ${r}`, `mov ${r}, ${c}`, `movq ${c}, ${r}`, `movq ${r}, ${c}`];
  }
  for (const cc of CONDITIONS) {
    yield* [
      `cmov${cc} %rcx, %r9`,
      `cmov${cc}q %rcx, %r9`,
      `cmov${cc}l 8(%rsp), %eax`,
      `cmov${cc} %ax, %cx`,
      `cmov${cc}w %ax, %cx`,
    ];
    yield* [`set${cc} %al`, `set${cc} %sil`, `set${cc} %r12b`, `set${cc} 16(%rsp)`, `set${cc}b (%rax)`];
  }
  yield* [
    "movnti %rax, (%rdi)",
    "movnti %eax, 8(%rdi)",
    "movntiq %rax, (%rdi)",
    "movbe (%rax), %ecx",
    "movbe %rcx, (%rax)",
    "movbeq %rcx, (%rax)",
  ];
}

function* unary(): Generator<string> {
  for (const op of UNARY)
    for (const size of SIZES) {
      for (const r of REGISTERS[size]) yield* [`${op} ${r}`, `${op}${size} ${r}`];
      for (const m of MEMORY) yield `${op}${size} ${m}`;
    }
  for (const op of SHIFTS)
    for (const size of SIZES) {
      for (const r of REGISTERS[size])
        yield* [
          `${op} $1, ${r}`,
          `${op} $5, ${r}`,
          `${op} %cl, ${r}`,
          `${op} ${r}`,
          `${op}${size} $3, ${r}`,
          `${op}${size} ${r}`,
        ];
      for (const m of FEW_MEMORY)
        yield* [
          `${op}${size} $1, ${m}`,
          `${op}${size} $7, ${m}`,
          `${op}${size} %cl, ${m}`,
          `${op}${size} ${m}`,
        ];
    }
  for (const size of ["w", "l", "q"] as const) {
    const [a, b] = [REGISTERS[size][1]!, REGISTERS[size].at(-1)!];
    yield* [
      `imul ${a}, ${b}`,
      `imul${size} 8(%rsp), ${b}`,
      `imul $3, ${a}, ${b}`,
      `imul $0x1234, ${a}, ${b}`,
      `imul${size} $100, (%rax), ${b}`,
      `imul $24, ${b}`,
      `imul${size} $0x1000, ${a}`,
    ];
    for (const op of ["bt", "bts", "btr", "btc"])
      yield* [
        `${op} ${a}, ${b}`,
        `${op} $7, ${b}`,
        `${op}${size} $9, 8(%rdi)`,
        `${op}${size} ${a}, (%rdi)`,
        `${op} ${b}, %gs:8`,
        `${op}${size} $3, ${a}`,
      ];
    for (const op of ["bsf", "bsr", "popcnt", "tzcnt", "lzcnt"])
      yield* [`${op} ${a}, ${b}`, `${op}${size} (%rax), ${b}`, `${op} (%rax), ${b}`, `rep ${op} ${a}, ${b}`];
    for (const op of ["shld", "shrd"])
      yield* [
        `${op} $4, ${a}, ${b}`,
        `${op} %cl, ${a}, ${b}`,
        `${op}${size} $3, ${b}, (%rax)`,
        `${op} ${a}, ${b}`,
      ];
  }
  yield* ["bswap %eax", "bswap %r9d", "bswap %rax", "bswapq %r15", "bswapl %ecx"];
}

function* atomics(): Generator<string> {
  for (const op of ["xchg", "xadd", "cmpxchg"])
    for (const size of SIZES)
      for (const r of REGISTERS[size]) {
        for (const m of FEW_MEMORY)
          yield* [
            `${op} ${r}, ${m}`,
            `${op}${size} ${r}, ${m}`,
            `lock ${op} ${r}, ${m}`,
            `lock; ${op}${size} ${r}, ${m}`,
          ];
        for (const other of REGISTERS[size]) yield `${op} ${r}, ${other}`;
        if (op === "xchg") yield* [`xchg (%rdi), ${r}`, `xchg${size} 8(%rsp), ${r}`];
      }
  for (const op of ["add", "or", "adc", "sbb", "and", "sub", "xor", "inc", "dec", "neg", "not"]) {
    const source = ["inc", "dec", "neg", "not"].includes(op) ? "" : "$1, ";
    for (const size of SIZES)
      yield* [`lock ${op}${size} ${source}(%rdi)`, `lock; ${op}${size} ${source}%gs:0x18`];
  }
  for (const op of ["bts", "btr", "btc"])
    yield* [`lock ${op}q $5, (%rdi)`, `lock ${op}l %eax, 8(%rdi)`, `lock ${op} %rax, 8(%rdi)`];
  yield* [
    "cmpxchg8b (%rdi)",
    "cmpxchg16b (%rdi)",
    "lock cmpxchg16b %gs:0x40",
    "lock cmpxchg8b 8(%rsp)",
    "lock addl $0, -4(%rsp)",
  ];
}

function* stack(): Generator<string> {
  for (const op of ["push", "pop"]) {
    for (const s of ["", "q"]) {
      for (const r of REGISTERS.q) yield `${op}${s} ${r}`;
      for (const m of MEMORY) yield `${op}${s} ${m}`;
    }
    for (const r of REGISTERS.w) yield* [`${op} ${r}`, `${op}w ${r}`];
    yield* [`${op} %fs`, `${op} %gs`, `${op}q %fs`, `${op}q %gs`, `${op}w 8(%rax)`];
  }
  for (const i of [
    "$0",
    "$1",
    "$-1",
    "$127",
    "$128",
    "$-128",
    "$-129",
    "$0x7fffffff",
    "$-0x80000000",
    "$0x10000",
  ])
    yield* [`push ${i}`, `pushq ${i}`];
  yield* [
    "pushw $5",
    "pushf",
    "pushfq",
    "popf",
    "popfq",
    "pushfw",
    "popfw",
    "leave",
    "leaveq",
    "leavew",
    "enter $16, $0",
    "enterq $0x100, $1",
  ];
  for (const op of ["call", "jmp"]) {
    for (const s of ["", "q"]) {
      for (const r of REGISTERS.q) yield `${op}${s} *${r}`;
      for (const m of MEMORY) yield `${op}${s} *${m}`;
      yield `notrack ${op}${s} *%rax`;
      yield `notrack ${op}${s} *(%rax,%rcx,8)`;
    }
    yield* [`${op} *%ax`, `l${op} *(%rax)`, `l${op}l *(%rax)`, `l${op}q *(%rax)`];
  }
  yield* [
    "ret",
    "retq",
    "ret $8",
    "retq $16",
    "lret",
    "lretq",
    "lretl",
    "lret $8",
    "lretq $8",
    "retw",
    "iret",
    "iretq",
    "iretl",
    "iretw",
    "rep ret",
    "rep; ret",
    "repz retq",
    "bnd ret",
    "bnd jmp *%rax",
  ];
}

function* strings(): Generator<string> {
  for (const op of ["movs", "stos", "lods", "scas", "cmps", "ins", "outs"])
    for (const size of SIZES) {
      const text = `${op}${size}`;
      yield* [
        text,
        `rep ${text}`,
        `rep; ${text}`,
        `repe ${text}`,
        `repz ${text}`,
        `repne ${text}`,
        `repnz; ${text}`,
      ];
    }
  yield* [
    "movsb (%rsi), (%rdi)",
    "movsq (%rsi), %es:(%rdi)",
    "rep movsq (%rsi), (%rdi)",
    "stosb %al, (%rdi)",
    "stosq %rax, %es:(%rdi)",
    "stos %eax, (%rdi)",
    "lodsq (%rsi), %rax",
    "lods (%rsi), %al",
    "scasb (%rdi), %al",
    "cmpsb (%rdi), (%rsi)",
    "movsl %gs:(%rsi), (%rdi)",
    "xlat",
    "xlatb",
    "movsb",
    "stosd",
    "movsd",
  ];
}

function* system(): Generator<string> {
  yield* "nop pause hlt cli sti cld std clc stc cmc cpuid rdtsc rdtscp rdpmc rdmsr wrmsr wbinvd invd swapgs syscall sysret sysretq sysretl sysenter sysexit sysexitq clts ud2 ud2a int3 int1 icebp into endbr64 endbr32 lfence mfence sfence monitor mwait vmcall vmmcall vmlaunch vmresume vmxoff stac clac xgetbv xsetbv rdpkru wrpkru sahf lahf cbtw cwtl cltq cwtd cltd cqto cdqe cqo cdq cwd cbw cwde serialize encls enclu xtest xend emms fninit fwait rsm getsec saves setssbsy wbnoinvd hreset".split(
    " ",
  );
  yield* [
    "int $3",
    "int $0x80",
    "int $0x20",
    "ud1 %eax, %ecx",
    "ud1l (%rax), %ecx",
    "ud0 %eax, %ecx",
    "xbegin 0x0(%rip)",
    "xabort $5",
  ];
  for (const op of ["nopw", "nopl", "nopq", "nop"]) {
    for (const m of [
      "(%rax)",
      "0(%rax)",
      "0(%rax,%rax,1)",
      "0x0(%rax,%rax,1)",
      "0x80(%rax)",
      "0x0(%rax)",
      "%cs:0(%rax,%rax,1)",
      "%cs:0x1000(%rax,%rax,1)",
      "8(%r9)",
    ])
      yield `${op} ${m}`;
    yield* [`${op} %ax`, `${op} %eax`, `${op} %rax`];
  }
  yield* [
    "xchg %ax, %ax",
    "xchg %eax, %eax",
    "xchg %rax, %rax",
    "xchgw %ax, %ax",
    "data16 nop",
    "rex.w nop",
    "lock; nop",
  ];
  for (const op of [
    "lgdt",
    "sgdt",
    "lidt",
    "sidt",
    "invlpg",
    "fxsave",
    "fxrstor",
    "fxsave64",
    "fxrstor64",
    "xsave",
    "xrstor",
    "xsave64",
    "xsaveopt64",
    "xsaves64",
    "xrstors64",
    "xsavec64",
    "xrstor64",
    "clflush",
    "clflushopt",
    "clwb",
    "cldemote",
    "prefetcht0",
    "prefetcht1",
    "prefetcht2",
    "prefetchnta",
    "prefetchw",
    "prefetch",
    "ldmxcsr",
    "stmxcsr",
    "vmptrld",
    "vmclear",
    "vmxon",
    "vmptrst",
    "fnstcw",
    "fldcw",
    "fnstsw",
  ])
    for (const m of FEW_MEMORY) yield `${op} ${m}`;
  for (const op of ["lldt", "sldt", "ltr", "str", "verr", "verw", "lmsw", "smsw"])
    yield* [
      `${op} %ax`,
      `${op} %eax`,
      `${op} %rax`,
      `${op} (%rax)`,
      `${op} 8(%rsp)`,
      `${op} 0x10(%rip)`,
      `${op} %gs:0x20`,
      `${op}w %ax`,
      `${op}w (%rax)`,
      `${op}w 8(%rip)`,
    ];
  for (const op of ["lar", "lsl"])
    yield* [
      `${op} %ax, %cx`,
      `${op} %eax, %ecx`,
      `${op} %rax, %rcx`,
      `${op} %ax, %ecx`,
      `${op} (%rax), %ecx`,
      `${op}l %eax, %ecx`,
    ];
  for (const op of ["rdfsbase", "wrfsbase", "rdgsbase", "wrgsbase"])
    for (const r of ["%eax", "%r9d", "%rax", "%rdi", "%r15"])
      yield* [`${op} ${r}`, `${op}${r.includes("e") || r.endsWith("d") ? "l" : "q"} ${r}`];
  for (const op of ["rdpid", "rdrand", "rdseed", "rdsspq", "incsspq"])
    for (const r of ["%rax", "%r12", "%eax"]) yield `${op} ${r}`;
  yield* [
    "rdrandl %eax",
    "rdrandq %r9",
    "rdseedw %ax",
    "invpcid (%rax), %rcx",
    "invept (%rax), %rcx",
    "invvpid 8(%rsp), %r9",
    "vmread %rax, %rcx",
    "vmread %rax, (%rcx)",
    "vmwrite %rax, %rcx",
    "vmwrite (%rax), %rcx",
    "vmreadq %rax, 8(%rsp)",
  ];
  for (const r of ["%al", "%ax", "%eax"])
    yield* [
      `in $0x60, ${r}`,
      `in %dx, ${r}`,
      `out ${r}, $0x80`,
      `out ${r}, %dx`,
      `in (%dx), ${r}`,
      `out ${r}, (%dx)`,
    ];
  yield* [
    "inb %dx, %al",
    "outb %al, $0x80",
    "inl $4, %eax",
    "outl %eax, %dx",
    "inw (%dx), %ax",
    "outb %al, (%dx)",
    "inb $0x61",
    "inb %dx",
    "outb $0x80",
    "outb %dx",
    "outb (%dx)",
  ];
  yield* [
    "crc32b %al, %ecx",
    "crc32l %eax, %ecx",
    "crc32q %rax, %rcx",
    "crc32q (%rax), %rcx",
    "crc32 %al, %rcx",
    "adcx %rax, %rcx",
    "adox %rax, %rcx",
    "adcxl %eax, %ecx",
    "mulx %rax, %rcx, %rdx",
    "andn %rax, %rcx, %rdx",
    "rorx $5, %rax, %rcx",
    "shlx %rax, %rcx, %rdx",
    "bextr %rax, %rcx, %rdx",
    "blsr %rax, %rcx",
    "pdep %rax, %rcx, %rdx",
    "movdiri %rax, (%rcx)",
    "umonitor %rax",
    "tpause %ecx",
    "umwait %edx",
    "enqcmds (%rax), %rcx",
    "movdir64b (%rax), %rcx",
    "ptwrite %rax",
    "ptwriteq (%rax)",
    "wrssq %rax, (%rcx)",
    "wrussq %rax, (%rcx)",
    "rstorssp (%rax)",
    "clrssbsy (%rax)",
    "saveprevssp",
  ];
}

/** Every text once, in a fixed order. */
export function instructionTexts(): string[] {
  return [
    ...new Set([...alu(), ...moves(), ...unary(), ...atomics(), ...stack(), ...strings(), ...system()]),
  ];
}
