// Random programs with random interrupts: run hot in regions on one machine and stepped on another, both are in the same
// state whenever an interrupt is requested, and at the end. The handlers count, and write to what the programs work on, so
// that one that comes an instruction early or late shows; some let others in.

import { createHash } from "node:crypto";
import fc from "fast-check";
import { beforeAll, expect, test } from "vitest";
import { type Addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import { assemble } from "../../src/x86/assemble.ts";
import { FLAG, GPR } from "../../src/x86/register.ts";
import {
  ENTRY_STACK_TOP,
  KERNEL_DATA,
  KERNEL_STACK_TOP,
  reset,
  resetToUser,
  type SystemGuest,
  setGate,
  systemGuest,
  USER_DATA,
  USER_STACK_TOP,
} from "./systemGuest.ts";

const ITERATIONS = 260; // more than it takes to be compiled

/** They work on (%rdi), which handlers write to; r15 counts, rsp and rdi stay. */
const LINES = [
  "add $3,%rax",
  "imul $7,%rax,%rbx",
  "mov (%rdi),%rcx\n add %rcx,%rdx",
  "mov %rax,24(%rdi)",
  "add %rbx,(%rdi)",
  "xchg %rdx,8(%rdi)",
  "lock xadd %rdx,16(%rdi)",
  "push %rax\n push 8(%rdi)\n pop %rsi\n pop %r8",
  "call 2f\n jmp 3f\n 2: inc %r10\n ret\n 3:",
  "cli\n incq 32(%rdi)\n mov 8(%rdi),%r9\n sti",
  "cli\n add 16(%rdi),%r11\n sti\n inc %r11",
  "pushfq\n popfq",
  "pushfq\n cli\n inc %r12\n popfq\n inc %r12",
  "cmp %rax,(%rdi)\n jb 2f\n inc %r9\n 2:",
  "std\n lea 0x90(%rdi),%rsi\n lodsq\n cld",
  "mov $5,%ecx\n push %rdi\n lea 0x100(%rdi),%rdi\n rep stosb\n pop %rdi",
  "mov $4,%ecx\n push %rdi\n mov %rdi,%rsi\n lea 0x200(%rdi),%rdi\n rep movsq\n pop %rdi",
  "mov $3,%ecx\n 2: add (%rdi),%r13\n loop 2b",
  "bt $3,%eax\n adc $0,%r14",
  "sar $1,%rdx\n setc %bl",
  "enter $16,$0\n mov %rax,-8(%rbp)\n leave",
  "rdfsbase %r12",
];

/** A handler: what it does, and whether others may come meanwhile. */
const HANDLERS = (data: Addr): string =>
  [
    ["bump", "addq $5,(%rax)"],
    ["turn", "rolq $3,8(%rax); incq 40(%rax)"],
    ["mark", "incq 48(%rax); movb $0xa5,0x105(%rax); sti; nop; nop; addq $1,16(%rax)"],
  ]
    .map(([name, code]) => `${name}: push %rax; movabs $${toWord(data)},%rax; ${code}; pop %rax; iretq`)
    .join("\n");

interface Request {
  readonly after: number;
  /** 0 is an NMI. */
  readonly vector: number;
}

const request = fc.record({
  after: fc.integer({ min: 1, max: 700 }),
  vector: fc.constantFrom(0, ...Array.from({ length: 9 }, (_, n) => 40 + n)),
});

class Bench {
  readonly guest: SystemGuest;
  private readonly user: boolean;
  private readonly stepped: boolean;

  constructor(guest: SystemGuest, user: boolean, stepped: boolean) {
    this.guest = guest;
    this.user = user;
    this.stepped = stepped;
    for (let n = 40; n < 49; n++) {
      const handler = guest.at(["bump", "turn", "mark"][n % 3]!);
      setGate(guest, n, { handler, type: n < 44 ? 14 : 15, ist: n === 48 ? 2 : 0 });
    }
    setGate(guest, 2, { handler: guest.at("turn"), ist: 3 });
  }

  begin(program: Uint8Array, on: boolean): void {
    const { guest, user } = this;
    const { memory } = guest.machine;
    (user ? resetToUser : reset)(guest);
    const text = guest.at(user ? "user" : "kernel");
    memory.write(text, program);
    for (const page of [KERNEL_DATA, USER_DATA]) memory.write(page, new Uint8Array(PAGE_SIZE));
    for (const top of [KERNEL_STACK_TOP, ENTRY_STACK_TOP, USER_STACK_TOP])
      memory.write(offset(top, -PAGE_SIZE), new Uint8Array(PAGE_SIZE));
    guest.vcpu.rip = text;
    guest.vcpu.setNumber("rdi", user ? USER_DATA : KERNEL_DATA);
    guest.vcpu.set("r15", BigInt(ITERATIONS));
    // User code may change IF where IOPL says so.
    guest.vcpu.rflags = 2n | FLAG.IOPL | (on ? FLAG.IF : 0n);
  }

  /** Executes `count` more instructions; false if the program has ended. */
  go(count: number): boolean {
    const { vcpu } = this.guest;
    const target = vcpu.instructions + count;
    while (vcpu.instructions < target) {
      const exit = this.stepped ? vcpu.step() : vcpu.run({ budget: target - vcpu.instructions });
      if (exit !== undefined && exit.kind !== "budget") return false;
    }
    return true;
  }

  /** All that can be seen of it, in two lines. */
  state(): string[] {
    const { vcpu, machine } = this.guest;
    const stacks = [KERNEL_STACK_TOP, ENTRY_STACK_TOP, USER_STACK_TOP].map((top) => offset(top, -PAGE_SIZE));
    const hash = createHash("sha1");
    for (const page of [KERNEL_DATA, USER_DATA, ...stacks]) hash.update(machine.memory.read(page, PAGE_SIZE));
    const registers = [...GPR.map((name) => vcpu.get(name)), toWord(vcpu.rip), vcpu.rflags, vcpu.system.user];
    return [registers.join(" "), hash.digest("hex")];
  }
}

let pieces: readonly Uint8Array[] = [];

beforeAll(async () => {
  pieces = await Promise.all(
    LINES.map(async (line, n) => {
      const object = await assemble(`line${n}.S`, line);
      return object.sections.find(({ name }) => name === ".text")!.bytes;
    }),
  );
});

/** The pieces, again and again; sti; nop; vmcall. */
function programOf(chosen: readonly number[]): Uint8Array {
  const body = chosen.flatMap((n) => [...pieces[n]!]);
  const code = Uint8Array.of(...body, 0x49, 0xff, 0xcf, 0x0f, 0x85, 0, 0, 0, 0, 0xfb, 0x90, 0x0f, 0x01, 0xc1);
  new DataView(code.buffer).setInt32(body.length + 5, -(body.length + 9), true);
  return code;
}

test.each([false, true])("the same run and stepped (user code: %s)", async (user) => {
  const room = `.skip 512\n ${HANDLERS(user ? USER_DATA : KERNEL_DATA)}`;
  const made = (stepped: boolean) =>
    systemGuest(user ? { kernel: room, user: ".skip 512" } : { kernel: room }).then(
      (guest) => new Bench(guest, user, stepped),
    );
  const [ran, stepped] = [await made(false), await made(true)];
  let hot = 0;
  let taken = 0n;
  fc.assert(
    fc.property(
      fc.array(fc.nat({ max: LINES.length - 1 }), { minLength: 1, maxLength: 8 }),
      fc.array(request, { maxLength: 24 }),
      fc.boolean(),
      (chosen, requests: readonly Request[], on) => {
        const program = programOf(chosen);
        for (const bench of [ran, stepped]) bench.begin(program, on);
        const started = [ran, stepped].map(({ guest }) => guest.vcpu.instructions);
        let ended = false;
        for (const { after, vector } of requests) {
          const goes = [ran, stepped].map((bench) => bench.go(after));
          expect(ran.state()).toEqual(stepped.state());
          ended = !goes[0]!;
          expect(goes[1]).toBe(goes[0]);
          if (ended) break;
          for (const { guest } of [ran, stepped])
            vector === 0 ? guest.vcpu.nmi() : guest.vcpu.interrupt(vector);
        }
        if (!ended) for (const bench of [ran, stepped]) expect(bench.go(1_000_000)).toBe(false);
        expect(ran.state()).toEqual(stepped.state());
        const counts = [ran, stepped].map(({ guest }, n) => guest.vcpu.instructions - started[n]!);
        expect(counts[0]).toBe(counts[1]);
        if (ran.guest.machine.regions.find(ran.guest.at(user ? "user" : "kernel"), user) !== undefined) hot++;
        taken += ran.guest.machine.memory.readWord(offset(user ? USER_DATA : KERNEL_DATA, 40));
      },
    ),
    { numRuns: 150, seed: 5 },
  );
  expect(hot).toBeGreaterThan(125);
  expect(taken).toBeGreaterThan(100n);
});
