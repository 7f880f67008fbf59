// What Unicorn 2.0.1 does wrong, known and looked into: one table, a reason each.
//
// A difference that an entry accounts for is Unicorn's, and no difference of this engine. test/reference holds
// every entry to an example that Unicorn still gets wrong, and to what a processor did with that.

import { CpuidFeature, Decoder, DecoderOptions } from "iced-x86";
import { PAGE_SIZE } from "../base/addr.ts";
import type { Fault } from "../machine/exit.ts";
import { Code, Mnemonic } from "../x86/decode.ts";
import { GPR, type Gpr } from "../x86/register.ts";
import { hasPrefix } from "./makers.ts";
import type { Plan } from "./plan.ts";

export interface UnicornFault {
  readonly reason: string;
  /** Whether it may show with an instruction, which faults here or does not, and with what is in the registers before. */
  readonly shows: (plan: Plan, fault: Fault | undefined, before: (register: Gpr) => bigint) => boolean;
  /** What it spoils: registers and flags by name, `memory`, `stop`. Anything else is not accounted for. */
  readonly spoils: readonly string[];
  /** Of registers, only the upper half. */
  readonly upperHalves?: boolean;
  /** A case (test/cases/README.md) that Unicorn gets wrong, with what a processor did. */
  readonly example: string;
}

/** Instructions that it does not know, whichever CPU model it is told to have. */
export const UNICORN_LACKS: ReadonlySet<CpuidFeature> = new Set([
  ...[CpuidFeature.POPCNT, CpuidFeature.MOVBE, CpuidFeature.CLFLUSHOPT, CpuidFeature.CLWB],
  ...[CpuidFeature.MOVDIRI, CpuidFeature.MOVDIR64B, CpuidFeature.CMPCCXADD, CpuidFeature.RAO_INT],
  CpuidFeature.SERIALIZE,
]);

const STATUS = ["CF", "PF", "AF", "ZF", "SF", "OF"];

export const UNICORN_FAULTS: readonly UnicornFault[] = [
  {
    reason: "lock neg sets flags from memory that is already replaced",
    shows: (plan) => is(plan, "Neg") && plan.instruction!.lock,
    spoils: STATUS,
    example:
      "f0 f6 5f 03 | lock negb 3(%rdi) | rdi=data [data+3]=1:1 => [data+3]=0xff:1 cf=1 pf=1 af=1 zf=0 sf=1 of=0",
  },
  {
    reason: "cmpxchg of 32 bits gets the upper half of the register wrong that it should not write, or clear",
    shows: (plan) =>
      is(plan, "Cmpxchg") &&
      plan.instruction!.operands[1]?.kind === "register" &&
      plan.instruction!.operands[1].size === 4,
    spoils: GPR,
    upperHalves: true,
    example:
      "0f b1 d9 | cmpxchg %ebx,%ecx | rax=0xfedcba9855667788 rcx=0xfedcba9855667788 rbx=0xfedcba9800000099 => rcx=0x99 cf=0 pf=1 af=0 zf=1 sf=0 of=0",
  },
  {
    reason: "bextr gets a field wrong that reaches the end of its operand",
    shows: (plan, _, before) => is(plan, "Bextr") && fieldEnd(control(plan, before)) >= operandBits(plan),
    spoils: [...GPR, "ZF"],
    example:
      "c4 e2 f0 f7 c3 | bextr %rcx,%rbx,%rax | rbx=0xf122334455667788 rcx=0x4000 cf=1 of=1 => rax=0xf122334455667788 cf=0 pf=? af=? zf=0 sf=? of=0",
  },
  {
    reason: "blsi sets CF the other way round",
    shows: (plan) => is(plan, "Blsi"),
    spoils: ["CF"],
    example:
      "c4 e2 f8 f3 db | blsi %rbx,%rax | rbx=0x1122334455667788 of=1 => rax=8 cf=1 pf=? af=? zf=0 sf=0 of=0",
  },
  {
    reason: "bzhi takes its index for too high one bit early",
    shows: (plan, _, before) =>
      is(plan, "Bzhi") && Number(control(plan, before) & 0xffn) >= operandBits(plan) - 1,
    spoils: [...GPR, "CF", "ZF", "SF"],
    example:
      "c4 e2 70 f5 c3 | bzhi %ecx,%ebx,%eax | rbx=0x12345678f2345678 rcx=0x20 of=1 => rax=0xf2345678 cf=1 pf=? af=? zf=0 sf=1 of=0",
  },
  {
    reason: "pdep and pext exchange source and mask",
    shows: (plan) => is(plan, "Pdep", "Pext"),
    spoils: GPR,
    example:
      "c4 e2 f3 f5 c3 | pdep %rbx,%rcx,%rax | rcx=0x1122334455667788 rbx=0xf0f0f0f0f0f0f0f0 cf=1 zf=1 => rax=0x5050606070708080",
  },
  {
    reason: "enter with an operand-size prefix writes more of rbp than 16 bits",
    shows: (plan) => is(plan, "Enter") && hasPrefix(plan.bytes, 0x66),
    spoils: ["rbp"],
    example: "66 c8 f9 0f 00 | enterw $0xff9,$0 | => rsp=data+5 rbp=0x5a5a5a5a5a5a0ffe [data+0xffe]=0x5a55:2",
  },
  {
    reason: "ret takes the amount it releases for signed",
    shows: (plan) => is(plan, "Ret") && immediate(plan, 0) >= 0x8000n,
    spoils: ["rsp"],
    example: "c2 ff ff | ret $0xffff | [data+0x1000]=code+5:8 => rsp=0x10011007 rip=+5",
  },
  {
    reason: "a branch goes to an address that is not canonical, and faults there",
    shows: (plan, fault) => fault?.vector === "#GP" && is(plan, "Call", "Jmp", "Ret"),
    spoils: ["rsp", "rip", "stop", "memory"],
    example: "ff e0 | jmp *%rax | rax=0x800000000000 => fault=#GP",
  },
  {
    reason: "a near branch heeds the operand-size prefix, as AMD's processors do",
    shows: ({ makers }) => makers?.name === "near branches with an operand-size prefix",
    spoils: ["rsp", "rip", "stop", "memory"],
    example: "66 eb 20 | jmp .+0x23 | => rip=+0x23",
  },
  {
    reason: "a prefetch of a register is invalid, as on AMD's processors",
    shows: ({ makers }) => makers?.name === "0f 0d with a register",
    spoils: ["rip", "stop"],
    example: "0f 0d c0 | .byte 0x0f, 0x0d, 0xc0 | rsi=0 cf=1 =>",
  },
  {
    reason: "clflush does not look at its address",
    shows: (plan, fault) => fault !== undefined && is(plan, "Clflush"),
    spoils: ["rip", "stop"],
    example: "0f ae 3e | clflush (%rsi) | rsi=data+0x2000 => fault=#PF(data+0x2000,read)",
  },
  {
    reason: "a store that faults on its second page has written to the first",
    shows: ({ writes }, fault) =>
      fault?.vector === "#PF" && fault.address % PAGE_SIZE === 0 && writes.length > 0,
    spoils: ["memory"],
    example: "48 89 06 | mov %rax,(%rsi) | rsi=data+0x1ff9 => fault=#PF(data+0x2000,write)",
  },
  {
    reason: "a test with an encoding that few assemblers make (f6 /1, f7 /1) is invalid",
    shows: ({ instruction }) => UNCOMMON_TESTS.has(instruction?.code),
    spoils: [...STATUS, "rip", "stop"],
    example: "f6 cf ff | test $0xff,%bh | rbx=0x0ea8 => cf=0 pf=0 af=? zf=0 sf=0 of=0",
  },
  {
    reason: "a prefetch hint of a register (0f 18 /0 to /3) is invalid",
    shows: ({ instruction }) => RESERVED_HINTS.has(instruction?.code),
    spoils: ["rip", "stop"],
    example: "0f 18 c0 | .byte 0x0f, 0x18, 0xc0 | rsi=0 cf=1 =>",
  },
  {
    reason: "repeated cmps and scas that fault leave the last comparison's flags, as on AMD's processors",
    shows: ({ makers }, fault) => fault !== undefined && makers?.name === "repeated cmps and scas that fault",
    spoils: STATUS,
    example:
      "f2 ae | repne scasb | rdi=data+0x1ffe rcx=9 rax=0 cf=1 zf=1 => rcx=7 rdi=data+0x2000 fault=#PF(data+0x2000,read)",
  },
  {
    reason: "repe with a repne before it is a repne",
    shows: (plan) => plan.instruction?.repeat === "rep" && plan.repeats && hasPrefix(plan.bytes, 0xf2),
    spoils: ["rcx", "rsi", "rdi", ...STATUS, "rip", "stop"],
    example:
      "f2 f3 ae | repe scasb | rdi=data rcx=3 rax=0xa5 => rcx=0 rdi=data+3 cf=0 pf=1 af=0 zf=1 sf=0 of=0",
  },
  {
    reason: "enter does not try whether it may write where rsp ends",
    shows: (plan, fault) => is(plan, "Enter") && fault !== undefined,
    spoils: ["rsp", "rbp", "rip", "stop", "memory"],
    example:
      "c8 00 20 00 | enter $0x2000,$0 | rsp=data+0x1008 => [data+0x1000]=0x5a5a5a5a5a5a5a55:8 fault=#PF(0xffff000,write)",
  },
  {
    reason: "movsxd into 16 bits reads 32, as on AMD's processors",
    shows: ({ makers }) => makers?.name === "movsxd into 16 bits, from memory",
    spoils: [...GPR, "rip", "stop"],
    example: "66 63 06 | movsxd (%rsi),%ax | rsi=data+0x1ffe rax=0 [data+0x1ffe]=0x1234:2 => rax=0x1234",
  },
  {
    reason: "adox with an operand-size prefix, too, is adcx",
    shows: (plan) => is(plan, "Adox") && hasPrefix(plan.bytes, 0x66),
    spoils: [...GPR, "CF", "OF"],
    example: "66 f3 0f 38 f6 c3 | adox %ebx,%eax | rax=5 rbx=0xffffffff of=1 => of=1",
  },
  {
    reason: "shld, shrd and rorx by an immediate miss an operand relative to rip by a byte",
    shows: (plan) =>
      is(plan, "Shld", "Shrd", "Rorx") &&
      plan.instruction!.operands[2]?.kind === "immediate" &&
      isRipRelative(plan),
    spoils: [...GPR, ...STATUS, "memory", "rip", "stop"],
    example:
      "0f ac 05 f8 07 00 f0 04 | shrd $4,%eax,0x10001000 | rax=0x11 [data+0xffc]=0x1122334455667788:8 => [data+0xffc]=0x1112233455667788:8 cf=0 pf=0 af=? zf=0 sf=0 of=?",
  },
  {
    reason: "crc32 with both repeat prefixes is invalid",
    shows: (plan) => is(plan, "Crc32") && hasPrefix(plan.bytes, 0xf3),
    spoils: [...GPR, "rip", "stop"],
    example: "f3 f2 0f 38 f0 c3 | crc32 %bl,%eax | rax=1 rbx=2 => rax=0x1350f3f4",
  },
];

function is({ instruction }: Plan, ...names: (keyof typeof Mnemonic)[]): boolean {
  return names.some((name) => instruction?.mnemonic === Mnemonic[name]);
}

function immediate({ instruction }: Plan, n: number): bigint {
  const operand = instruction!.operands[n];
  return operand?.kind === "immediate" ? operand.value : 0n;
}

/** Of the first operand, a register. */
function operandBits({ instruction }: Plan): number {
  const [operand] = instruction!.operands;
  return operand?.kind === "register" ? 8 * operand.size : 0;
}

/** What is in the third operand, a register. */
function control({ instruction }: Plan, before: (register: Gpr) => bigint): bigint {
  const operand = instruction!.operands[2];
  return operand?.kind === "register" ? before(operand.reg) : 0n;
}

/** Bextr's control says where a field starts and how long it is. */
function fieldEnd(value: bigint): number {
  return Number(value & 0xffn) + Number((value >> 8n) & 0xffn);
}

function isRipRelative({ bytes, ip }: Plan): boolean {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = BigInt.asUintN(64, BigInt(ip));
  const instruction = decoder.decode();
  const relative = instruction.isIpRelMemoryOperand;
  instruction.free();
  decoder.free();
  return relative;
}

const UNCOMMON_TESTS: ReadonlySet<Code | undefined> = new Set([
  ...[Code.Test_rm8_imm8_F6r1, Code.Test_rm16_imm16_F7r1],
  ...[Code.Test_rm32_imm32_F7r1, Code.Test_rm64_imm32_F7r1],
]);
const RESERVED_HINTS: ReadonlySet<Code | undefined> = new Set([
  ...[Code.Reservednop_rm16_r16_0F18, Code.Reservednop_rm32_r32_0F18, Code.Reservednop_rm64_r64_0F18],
]);
