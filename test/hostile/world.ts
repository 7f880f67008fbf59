// What a hostile case runs in: pages with odd rights, aliases, tables that may be garbage, registers that point anywhere.

import { type Addr, addr, offset, PAGE_SIZE, toWord } from "../../src/base/addr.ts";
import type { Machine } from "../../src/machine/machine.ts";
import type { Access } from "../../src/machine/memory.ts";
import type { Vcpu } from "../../src/machine/vcpu.ts";
import { CR0, CR4, FLAG, GPR } from "../../src/x86/register.ts";
import type { Random } from "../fuzz/random.ts";
import { hostileCode, littleEndian } from "./code.ts";

const KERNEL_TEXT = addr(0xffff_ffff_8100_0000n);
const KERNEL_ALIAS = addr(0xffff_ffff_8200_0000n);
const KERNEL_DATA = addr(0xffff_8890_0000_0000n);
const KERNEL_STACK = addr(0xffff_c900_0000_4000n);
const TABLES = addr(0xffff_8880_0000_0000n);
const GDT = TABLES;
const IDT = offset(TABLES, 0x1000);
const TSS = offset(TABLES, 0x2000);
const HANDLERS = offset(TABLES, 0x3000);
const USER_TEXT = addr(0x40_0000);
const USER_ALIAS = addr(0x50_0000);
const USER_DATA = addr(0x60_0000);
const USER_STACK = addr(0x7fff_0000_4000);
const EDGES = [addr(0), addr(2 ** 47 - PAGE_SIZE), addr(-(2 ** 47)), addr(-PAGE_SIZE)];

const KERNEL_CODE = 0x10;
const USER_CODE = 0x33;

export interface World {
  readonly user: boolean;
  readonly text: Addr;
  readonly textSize: number;
  readonly data: Addr;
  /** Where the stack begins. */
  readonly stack: Addr;
  /** Addresses worth a try. */
  readonly places: readonly Addr[];
}

const access = (write: boolean, execute: boolean, user: boolean): Access => ({ write, execute, user });

export function randomAccess(random: Random, user: boolean): Access {
  return access(random.chance(70), random.chance(60), random.chance(80) ? user : !user);
}

/** Maps and fills a world on `machine`, which has nothing mapped, and puts every vCPU into it. */
export function makeWorld(random: Random, machine: Machine): World {
  const { memory } = machine;
  const user = random.chance(45);
  const text = user ? USER_TEXT : KERNEL_TEXT;
  const textSize = PAGE_SIZE * (1 + random.below(4));
  for (let page = text; page < text + textSize; page = offset(page, PAGE_SIZE))
    memory.map(
      page,
      PAGE_SIZE,
      random.chance(85) ? access(random.chance(70), true, user) : randomAccess(random, user),
    );
  fillText(random, machine, text, textSize);
  if (random.chance(50))
    memory.alias(
      random.chance(70) === user ? USER_ALIAS : KERNEL_ALIAS,
      text,
      textSize,
      randomAccess(random, user),
    );
  const data = user ? USER_DATA : KERNEL_DATA;
  memory.map(data, 2 * PAGE_SIZE, access(random.chance(90), random.chance(20), user));
  // The page below a stack is a guard: there is none.
  const stack = user ? USER_STACK : KERNEL_STACK;
  memory.map(offset(stack, -2 * PAGE_SIZE), 2 * PAGE_SIZE, access(true, random.chance(20), user));
  if (user) memory.map(offset(KERNEL_STACK, -PAGE_SIZE), PAGE_SIZE, access(true, false, false));
  for (const edge of EDGES) if (random.chance(25)) memory.map(edge, PAGE_SIZE, randomAccess(random, user));
  const places = [
    ...[text, offset(text, textSize), USER_ALIAS, KERNEL_ALIAS, data, offset(data, 2 * PAGE_SIZE), stack],
    ...[offset(stack, -2 * PAGE_SIZE), TABLES, IDT, TSS, HANDLERS, ...EDGES],
  ];
  const world = { user, text, textSize, data, stack, places };
  const tables = makeTables(random, machine, world);
  for (const vcpu of machine.vcpus) enter(random, vcpu, world, tables);
  return world;
}

function fillText(random: Random, { memory }: Machine, text: Addr, size: number): void {
  if (random.chance(50)) memory.write(text, hostileCode(random, size).subarray(0, size));
  else {
    // A little code many times over, so that wherever it goes there is more.
    const code = hostileCode(random, 4 + random.below(120));
    for (let at = 0; at + code.length <= size; at += code.length) memory.write(offset(text, at), code);
  }
}

// ---- Tables and handlers.

const WITH_ERROR_CODE = [8, 10, 11, 12, 13, 14, 17, 21];

/** Handlers by what they do: go on behind one byte, try again, go elsewhere, count, stop. */
function makeHandlers(random: Random, machine: Machine, world: World): Addr[][] {
  const word = (value: Addr) => {
    const bits = toWord(value);
    return [...littleEndian(Number(bits & 0xffffffffn), 4), ...littleEndian(Number(bits >> 32n), 4)];
  };
  const iret = [0x48, 0xcf];
  const bodies = [
    [0x48, 0x83, 0x04, 0x24, 1 + random.below(4), ...iret],
    iret,
    // push %rax; movabs; mov %rax,8(%rsp); pop %rax
    [0x50, 0x48, 0xb8, ...word(somewhere(random, world)), 0x48, 0x89, 0x44, 0x24, 8, 0x58, ...iret],
    [
      0x50,
      0x48,
      0xb8,
      ...word(offset(TABLES, 0x3ff8)),
      0x48,
      0xff,
      0x00,
      0x58,
      0x48,
      0x83,
      0x04,
      0x24,
      1,
      ...iret,
    ],
    [0x0f, 0x01, 0xc1],
    [0xf4],
  ];
  let next = HANDLERS;
  const place = (code: number[]): Addr => {
    const at = next;
    machine.memory.write(at, Uint8Array.from(code));
    next = offset(next, code.length);
    return at;
  };
  return bodies.map((body) => [place(body), place([0x48, 0x83, 0xc4, 8, ...body])]);
}

/** False if there are none: then faults are exits. */
function makeTables(random: Random, machine: Machine, world: World): boolean {
  const { memory } = machine;
  if (random.chance(10)) return false;
  memory.map(TABLES, 4 * PAGE_SIZE, access(random.chance(90), true, random.chance(5)));
  const tss = toWord(TSS);
  const descriptors: [number, bigint][] = [
    [0x10, 0x00af_9b00_0000_ffffn],
    [0x18, 0x00cf_9300_0000_ffffn],
    [0x20, 0x00cf_9200_0000_ffffn],
    [0x28, 0x00cf_f300_0000_ffffn],
    [0x30, 0x00af_fb00_0000_ffffn],
    [0x40, 0x67n | ((tss & 0xffffffn) << 16n) | (0x8bn << 40n) | (((tss >> 24n) & 0xffn) << 56n)],
    [0x48, tss >> 32n],
  ];
  for (const [at, descriptor] of descriptors) memory.writeWord(offset(GDT, at), descriptor);
  memory.writeWord(offset(TSS, 4), toWord(random.chance(90) ? KERNEL_STACK : wild(random, world)));
  for (let n = 0; n < 7; n++)
    memory.writeWord(
      offset(TSS, 0x24 + 8 * n),
      toWord(random.chance(80) ? KERNEL_STACK : wild(random, world)),
    );
  const handlers = makeHandlers(random, machine, world);
  const usual = random.pick(handlers.slice(0, 4));
  for (let vector = 0; vector < 256; vector++) {
    const kind = random.chance(85) ? usual : random.pick(handlers);
    const handler = random.chance(97)
      ? kind[WITH_ERROR_CODE.includes(vector) ? 1 : 0]!
      : somewhere(random, world);
    const ist = random.chance(5) ? random.below(8) : 0;
    const type = random.chance(95) ? 0x8e | random.below(2) : random.below(256);
    const dpl = random.chance(50) ? 0x60 : 0;
    const to = toWord(handler);
    const low = (to & 0xffffn) | (BigInt(KERNEL_CODE) << 16n) | (BigInt(ist | ((type | dpl) << 8)) << 32n);
    memory.writeWord(offset(IDT, 16 * vector), low | (((to >> 16n) & 0xffffn) << 48n));
    memory.writeWord(offset(IDT, 16 * vector + 8), to >> 32n);
  }
  if (random.chance(15))
    for (let n = random.below(20); n >= 0; n--)
      memory.writeWord(offset(TABLES, 8 * random.below(0x600)), word64(random));
  return true;
}

function enter(random: Random, vcpu: Vcpu, world: World, tables: boolean): void {
  const { system } = vcpu;
  const { user } = world;
  system.setWord("cs", BigInt(user ? USER_CODE : KERNEL_CODE));
  system.setWord("ss", user ? 0x2bn : 0x18n);
  system.setWord("gdtBase", toWord(random.chance(97) ? GDT : wild(random, world)));
  system.setWord("gdtLimit", BigInt(random.chance(95) ? 0x4f : random.below(0x10000)));
  system.setWord("idtBase", toWord(random.chance(97) ? IDT : wild(random, world)));
  const limit = random.chance(85) ? 0xfff : random.chance(50) ? 0 : random.below(0x10000);
  system.setWord("idtLimit", BigInt(tables || random.chance(10) ? limit : 0));
  system.setWord("tr", 0x40n);
  system.setWord("tssBase", toWord(random.chance(97) ? TSS : wild(random, world)));
  system.setWord("tssLimit", BigInt(random.chance(95) ? 0x67 : random.below(0x100)));
  system.setWord("star", 0x0023_0010_0000_0000n);
  for (const name of ["lstar", "sysenterEip", "sysenterEsp", "kernelGsBase"] as const)
    system.setWord(name, toWord(somewhere(random, world)));
  system.setWord("sysenterCs", random.chance(80) ? 0x10n : 0n);
  system.setWord("fmask", random.chance(50) ? 0x700n : 0n);
  system.setWord("cr0", CR0.PE | CR0.PG | (random.chance(80) ? CR0.WP : 0n));
  let cr4: bigint = CR4.FSGSBASE;
  for (const bit of [CR4.TSD, CR4.DE, CR4.OSXSAVE, CR4.SMEP, CR4.SMAP]) if (random.chance(15)) cr4 |= bit;
  system.setWord("cr4", cr4);
  if (random.chance(6)) {
    for (let n = 0; n < 4; n++) system.setWord("dr", toWord(somewhere(random, world)), n);
    system.setWord("dr", BigInt(0x400 | random.below(256)) | (BigInt(random.below(65536)) << 16n), 7);
  }
  system.setPrivilege(user ? 3 : 0);
  for (const name of GPR) vcpu.set(name, randomWord(random, world));
  if (random.chance(85)) vcpu.rsp = offset(world.stack, -8 * random.below(64));
  vcpu.gsBase = randomBase(random, world);
  vcpu.fsBase = randomBase(random, world);
  vcpu.rip = random.chance(97) ? offset(world.text, random.below(64)) : wild(random, world);
  vcpu.rflags = randomFlags(random);
}

export function randomFlags(random: Random): bigint {
  let flags = 2n | BigInt(random.word() & 0x8d5);
  for (const [flag, percent] of [
    [FLAG.IF, 50],
    [FLAG.DF, 20],
    [FLAG.TF, 4],
    [FLAG.IOPL, 10],
    [FLAG.NT, 3],
    [FLAG.RF, 3],
    [FLAG.AC, 10],
  ] as const)
    if (random.chance(percent)) flags |= flag;
  return flags;
}

// ---- Words and addresses.

const word64 = (random: Random): bigint => (BigInt(random.word() >>> 0) << 32n) | BigInt(random.word() >>> 0);

/** Near one of the world's places. */
export function somewhere(random: Random, { places, text, textSize }: World): Addr {
  if (random.chance(50)) return offset(text, random.below(textSize));
  const near =
    random.pick(places) + random.below(random.chance(50) ? 33 : 0x2001) - (random.chance(50) ? 16 : 0);
  return (near >= 2 ** 47 || near < -(2 ** 47) ? text : near) as Addr;
}

/** Any canonical address. */
function wild(random: Random, world: World): Addr {
  return random.chance(60) ? somewhere(random, world) : addr(BigInt.asIntN(48, word64(random)));
}

export function randomWord(random: Random, world: World): bigint {
  const kind = random.below(10);
  if (kind < 5) return toWord(somewhere(random, world));
  if (kind < 7) return BigInt(random.below(300));
  return kind < 8 ? BigInt.asUintN(64, (1n << 47n) - BigInt(random.below(16))) : word64(random);
}

function randomBase(random: Random, world: World): bigint {
  return random.chance(50) ? 0n : BigInt.asIntN(64, toWord(wild(random, world)));
}
