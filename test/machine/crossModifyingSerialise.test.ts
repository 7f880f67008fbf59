// What makes a vCPU see all that was stored to code, instruction by instruction, and what does not.

import { describe, expect, test } from "vitest";
import { addr, offset, toWord } from "../../src/base/addr.ts";
import { sameBytes } from "../../src/base/bytes.ts";
import { oldest } from "../../src/machine/staleCode.ts";
import { serialises } from "../../src/machine/system/serialising.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { decode } from "../../src/x86/decode.ts";
import { FLAG } from "../../src/x86/register.ts";
import { bytes, Staleness, serialiseAll, staleGuest } from "./crossModifying.ts";
import { setRegisters, TEXT } from "./guest.ts";
import { KERNEL_DATA, onReturn, SELECTOR, type SystemGuest, stepAll, systemGuest } from "./systemGuest.ts";

/** In AT&T syntax; rdi is KERNEL_DATA, where `prepare` may have put something. */
interface Case {
  readonly code: string;
  readonly prepare?: (guest: SystemGuest) => void;
}

/** With the address and limit of a table, as sgdt stores them, at rdi. */
const TABLE_TO_LOAD = (table: "gdt" | "idt") => `s${table} (%rdi)\n l${table} (%rdi)`;
/** A TSS that is not in use yet, in the descriptor that tr names. */
const freeTss = ({ machine: { memory }, vcpu }: SystemGuest) => {
  const descriptor = offset(addr(vcpu.system.getWord("gdtBase")), SELECTOR.tss);
  memory.writeWord(descriptor, memory.readWord(descriptor) & ~(1n << 41n));
};
const skipUd2 = (guest: SystemGuest) => onReturn(guest, 6, { skip: 2 });
const RETURN = "mov %rsp,%rax\n mov %ss,%ecx\n push %rcx\n push %rax\n pushfq\n mov %cs,%ecx\n push %rcx";

const SERIALISING: Record<string, Case> = {
  cpuid: { code: "cpuid" },
  serialize: { code: "serialize" },
  iretq: { code: `${RETURN}\n lea back(%rip),%rcx\n push %rcx\n iretq\n back:` },
  "mov to cr0": { code: "mov %cr0,%rax\n mov %rax,%cr0" },
  "mov to cr2": { code: "mov %rax,%cr2" },
  "mov to cr3": { code: "mov %cr3,%rax\n mov %rax,%cr3" },
  "mov to cr4": { code: "mov %cr4,%rax\n mov %rax,%cr4" },
  "mov to dr0": { code: "mov %rdi,%db0" },
  "mov to dr7": { code: "mov %db7,%rax\n mov %rax,%db7" },
  wrmsr: { code: "mov $0xc0000103,%ecx\n wrmsr" },
  invlpg: { code: "invlpg (%rdi)" },
  invd: { code: "invd" },
  wbinvd: { code: "wbinvd" },
  lgdt: { code: TABLE_TO_LOAD("gdt") },
  lidt: { code: TABLE_TO_LOAD("idt") },
  lldt: { code: "xor %eax,%eax\n lldt %ax" },
  ltr: { code: `mov $${SELECTOR.tss},%eax\n ltr %ax`, prepare: freeTss },
  "int3, whose handler returns": { code: "int3" },
  "int, whose handler returns": { code: "int $50" },
  "a fault, whose handler skips it": { code: "ud2", prepare: skipUd2 },
};

const OTHERS: Record<string, Case> = {
  nop: { code: "nop" },
  pause: { code: "pause" },
  lfence: { code: "lfence" },
  mfence: { code: "mfence" },
  sfence: { code: "sfence" },
  clflush: { code: "clflush (%rdi)" },
  "lock add": { code: "lock addq $1,(%rdi)" },
  xchg: { code: "xchg %rax,(%rdi)" },
  rdtsc: { code: "rdtsc" },
  rdtscp: { code: "rdtscp" },
  rdmsr: { code: "mov $0xc0000103,%ecx\n rdmsr" },
  "mov from cr0": { code: "mov %cr0,%rax" },
  "mov to cr8": { code: "mov %cr8,%rax\n mov %rax,%cr8" },
  "mov from dr7": { code: "mov %db7,%rax" },
  clts: { code: "clts" },
  wbnoinvd: { code: "wbnoinvd" },
  swapgs: { code: "swapgs\n swapgs" },
  "sgdt and sidt": { code: "sgdt (%rdi)\n sidt (%rdi)" },
  "a load of ss": { code: "mov %ss,%eax\n mov %eax,%ss" },
  "cli and sti": { code: "cli\n sti\n cli" },
  popfq: { code: "pushfq\n popfq" },
  jmp: { code: "jmp 1f\n nop\n1:" },
  "call and ret": { code: "call 1f\n jmp 2f\n1: ret\n2:" },
  "a far return": { code: "mov %cs,%eax\n push %rax\n lea back(%rip),%rax\n push %rax\n lretq\n back:" },
};

/** A guest whose first vCPU is to execute `code`, then move an immediate to eax that was changed from 1 to 2 meanwhile. */
async function prepared({ code, prepare }: Case): Promise<SystemGuest> {
  const staleness = new Staleness();
  staleness.by = oldest;
  staleness.answer = "stop";
  const kernel = `${code}\n probe: mov $1,%eax\n vmcall`;
  const guest = await systemGuest({ kernel, options: { vcpus: 2, code: staleness } });
  const { machine, vcpu, at } = guest;
  prepare?.(guest);
  vcpu.set("rdi", toWord(KERNEL_DATA));
  serialiseAll(machine);
  machine.vcpus[1]!.store(offset(at("probe"), 1), bytes("02"));
  return guest;
}

const HOW = [
  { how: "run", go: ({ vcpu }: SystemGuest) => vcpu.run({ budget: 1000 }) },
  { how: "stepped", go: stepAll },
];

describe.each(HOW)("$how", ({ go }) => {
  test.each(Object.keys(SERIALISING))("%s serialises", async (name) => {
    const guest = await prepared(SERIALISING[name]!);
    expect(go(guest).kind).toBe("hypercall");
    expect(guest.vcpu.get("rax")).toBe(2n);
    expect(guest.vcpu.log?.isEmpty).toBe(true);
  });

  test.each(Object.keys(OTHERS))("%s does not", async (name) => {
    const guest = await prepared(OTHERS[name]!);
    expect(go(guest).kind).toBe("hypercall");
    expect(guest.vcpu.get("rax")).toBe(1n);
    expect(guest.vcpu.log?.isEmpty).toBe(false);
  });
});

test.each(["int3", "int $50", "ud2", "an interrupt"])(
  "%s: neither it nor its handler serialises before the iretq",
  async (what) => {
    const guest = await prepared({ code: what === "an interrupt" ? "nop" : what, prepare: skipUd2 });
    const { machine, vcpu, at } = guest;
    if (what === "an interrupt") {
      vcpu.rflags = FLAG.IF;
      vcpu.interrupt(33);
    }
    for (let steps = 0; vcpu.log?.isEmpty === false; steps++) {
      expect(steps).toBeLessThan(100);
      const iretq = machine.memory.read(vcpu.rip, 2);
      expect(vcpu.step()).toBeUndefined();
      expect(vcpu.log?.isEmpty).toBe(sameBytes(iretq, bytes("48 cf")));
    }
    expect(guest.log()).toHaveLength(1);
    expect(vcpu.rip).toBe(at(what === "an interrupt" ? "kernel" : "probe"));
  },
);

test("an instruction that faults does not serialise", async () => {
  for (const code of [
    "xor %ecx,%ecx\n wrmsr",
    "mov $-1,%rax\n mov %rax,%cr0",
    "movabs $1<<47,%rax\n lidt (%rax)",
  ]) {
    const guest = await prepared({ code });
    const { vcpu } = guest;
    vcpu.system.setWord("idtLimit", 0n);
    expect(vcpu.run()).toMatchObject({ kind: "fault", fault: { vector: "#GP" } });
    expect(vcpu.log?.isEmpty).toBe(false);
  }
});

test("every size of iret does; calls of the system and returns from them do not", () => {
  const judge = (hex: string) => {
    const decoded = decode(bytes(hex), TEXT);
    return decoded.kind === "instruction" && serialises(decoded.instruction);
  };
  expect(["48 cf", "cf", "66 cf"].map(judge)).toEqual([true, true, true]);
  expect(["0f 05", "48 0f 07", "0f 34", "48 0f 35", "cb"].map(judge)).toEqual(Array(5).fill(false));
});

test("the registers that wrmsr is exempt for are not there", async () => {
  // SDM vol. 3, 8.3: were one of them added, it should not serialise.
  const exempt = [
    0x48,
    0x49,
    0x122,
    0x6e0,
    0x6e1,
    0x774,
    ...Array.from({ length: 0x3e }, (_, n) => 0x802 + n),
  ];
  const guest = await systemGuest({ kernel: "wrmsr\n vmcall" });
  guest.vcpu.system.setWord("idtLimit", 0n);
  for (const number of exempt) {
    guest.vcpu.rip = guest.at("kernel");
    guest.vcpu.set("rcx", BigInt(number));
    expect(guest.vcpu.run()).toMatchObject({ kind: "fault", fault: { vector: "#GP" } });
  }
});

describe("from TypeScript", () => {
  test("serialise: of that vCPU alone, and of what was stored before", () => {
    const { machine, code } = staleGuest("b8 01 00 00 00 0f 01 c1", 3); // mov $1,%eax; vmcall
    code.by = oldest;
    const [a, b, c] = machine.vcpus as [Vcpu, Vcpu, Vcpu];
    const see = (vcpu: Vcpu) => {
      setRegisters({ machine, vcpu }, {});
      expect(vcpu.run().kind).toBe("hypercall");
      return vcpu.get("rax");
    };
    a.store(offset(TEXT, 1), bytes("02"));
    b.serialise();
    expect([a, b, c].map(see)).toEqual([2n, 2n, 1n]);
    a.store(offset(TEXT, 1), bytes("03"));
    expect([a, b, c].map(see)).toEqual([3n, 2n, 1n]);
    c.serialise();
    expect([a, b, c].map(see)).toEqual([3n, 2n, 3n]);
  });

  test("a store by nobody is everybody's to miss", () => {
    const { machine, code, vcpu } = staleGuest("b8 01 00 00 00 0f 01 c1", 1);
    code.by = oldest;
    machine.memory.write(offset(TEXT, 1), bytes("02"));
    expect(vcpu.run().kind).toBe("hypercall");
    expect(vcpu.get("rax")).toBe(1n);
  });
});
