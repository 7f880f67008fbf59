// Random programs, stepped on one machine and run hot in regions with random budgets on another: after every
// budget both must be in the same state. (What each instruction means is checked elsewhere; here, that all the
// engine's ways of executing it mean the same.)

import fc from "fast-check";
import { expect, test } from "vitest";
import { offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { DATA, type Guest, makeGuest, restart, setRegisters, stateOf, TEXT } from "./guest.ts";

const ITERATIONS = 260; // more than it takes to be compiled
/** Data operands lie around a page boundary. */
const POINTER = offset(DATA, PAGE_SIZE - 64);

/** All but rcx, which counts, rbx, which points, and rsp. */
const register = fc.constantFrom(0, 2, 5, 6, 7, 8, 9, 10, 13, 15);
const byte = fc.nat({ max: 255 });

/** `op` with a register field and a register or (%rbx+disp8), of an operand size in bytes. */
function modrm(size: number, op: readonly number[], reg: number, rm: number | { disp: number }): number[] {
  const prefix = size === 2 ? [0x66] : [];
  const low = typeof rm === "number" ? rm : 3;
  const rex = 0x40 | (size === 8 ? 8 : 0) | (reg >= 8 ? 4 : 0) | (low >= 8 ? 1 : 0);
  const mod = typeof rm === "number" ? 0xc0 : 0x40;
  return [
    ...prefix,
    rex,
    ...op,
    mod | ((reg & 7) << 3) | (low & 7),
    ...(typeof rm === "number" ? [] : [rm.disp]),
  ];
}

const size = fc.constantFrom(1, 2, 4, 8);
const wide = fc.constantFrom(2, 4, 8);
const place = fc.oneof(register, fc.record({ disp: fc.nat({ max: 120 }) }));
/** The opcode of the byte form is one less. */
const form = (op: number, bytes: number) => (bytes === 1 ? op - 1 : op);

const twoOperands = fc
  .tuple(
    fc.constantFrom(
      0x01,
      0x03,
      0x09,
      0x0b,
      0x11,
      0x13,
      0x19,
      0x1b,
      0x21,
      0x23,
      0x29,
      0x2b,
      0x31,
      0x33,
      0x39,
      0x3b,
      0x85,
      0x87,
      0x89,
      0x8b,
    ),
    size,
    register,
    place,
  )
  .map(([op, bytes, reg, rm]) => modrm(bytes, [form(op, bytes)], reg, rm));
const immediate = fc
  .tuple(fc.nat({ max: 7 }), wide, place, byte)
  .map(([ext, bytes, rm, value]) => [...modrm(bytes, [0x83], ext, rm), value]);
const shift = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 4, 5, 7), size, place, byte)
  .map(([ext, bytes, rm, count]) => [...modrm(bytes, [form(0xc1, bytes)], ext, rm), count]);
const shiftByCl = fc
  .tuple(fc.constantFrom(0, 1, 2, 3, 4, 5, 7), size, place)
  .map(([ext, bytes, rm]) => modrm(bytes, [form(0xd3, bytes)], ext, rm));
/** inc, dec; not, neg, mul, imul. */
const oneOperand = fc
  .tuple(fc.constantFrom([0xff, 0], [0xff, 1], [0xf7, 2], [0xf7, 3], [0xf7, 4], [0xf7, 5]), size, place)
  .map(([[op, ext], bytes, rm]) => modrm(bytes, [form(op!, bytes)], ext!, rm));
/** imul, movzx, movsx, bt, bsf, bsr, shld and cmovcc, setcc, xadd, cmpxchg. */
const twoBytes = fc
  .tuple(fc.constantFrom(0xaf, 0xb7, 0xbf, 0xa3, 0xbc, 0xbd, 0xa5), wide, register, register)
  .map(([op, bytes, reg, rm]) => modrm(bytes, [0x0f, op], reg, rm));
const conditional = fc
  .tuple(fc.nat({ max: 15 }), fc.boolean(), wide, register, place)
  .map(([condition, move, bytes, reg, rm]) =>
    move ? modrm(bytes, [0x0f, 0x40 + condition], reg, rm) : modrm(1, [0x0f, 0x90 + condition], 0, rm),
  );
const atomic = fc
  .tuple(fc.constantFrom(0xc1, 0xb1), size, register, place)
  .map(([op, bytes, reg, rm]) => modrm(bytes, [0x0f, form(op, bytes)], reg, rm));
const stacked = fc
  .tuple(register, register)
  .map(([from, to]) => [0x40 | (from >> 3), 0x50 + (from & 7), 0x40 | (to >> 3), 0x58 + (to & 7)]);
/** pushfq; pop %rax. clc; cmc; stc; lahf; sahf; cqo; bswap %rax. */
const plain = fc.constantFrom<number[]>(
  [0x9c, 0x58],
  [0xf8],
  [0xf5],
  [0xf9],
  [0x9f],
  [0x9e],
  [0x48, 0x99],
  [0x48, 0x0f, 0xc8],
);
const simple = fc.oneof(
  twoOperands,
  immediate,
  shift,
  shiftByCl,
  oneOperand,
  twoBytes,
  conditional,
  atomic,
  stacked,
  plain,
);
/** A conditional jump over one instruction. */
const skipping = fc
  .tuple(fc.nat({ max: 15 }), simple)
  .map(([condition, over]) => [0x70 + condition, over.length, ...over]);

const body = fc.array(fc.oneof({ weight: 5, arbitrary: simple }, { weight: 1, arbitrary: skipping }), {
  minLength: 1,
  maxLength: 12,
});
const seeds = fc.array(fc.bigInt({ min: 0n, max: 2n ** 64n - 1n }), { minLength: 16, maxLength: 16 });

function program(instructions: readonly number[][]): Uint8Array {
  const code = instructions.flat();
  const back = -(code.length + 9); // dec %rcx; jne back to 0; vmcall
  const bytes = Uint8Array.of(...code, 0x48, 0xff, 0xc9, 0x0f, 0x85, 0, 0, 0, 0, 0x0f, 0x01, 0xc1);
  new DataView(bytes.buffer).setInt32(code.length + 5, back, true);
  return bytes;
}

const NAMES = ["rax", "rdx", "rbp", "rsi", "rdi", "r8", "r9", "r10", "r13", "r15"] as const;

function begin(guest: Guest, bytes: Uint8Array, values: readonly bigint[]): void {
  guest.machine.memory.write(TEXT, bytes);
  restart(guest, {});
  const registers = Object.fromEntries(NAMES.map((name, n) => [name, values[n]!]));
  setRegisters(guest, { ...registers, rbx: POINTER, rcx: ITERATIONS });
}

test("random programs do the same stepped and run", () => {
  const [stepped, ran] = [makeGuest("90"), makeGuest("90")];
  let hot = 0;
  const sameState = () => {
    expect(stateOf(ran)).toEqual(stateOf(stepped));
    expect(ran.machine.memory.read(POINTER, 192)).toEqual(stepped.machine.memory.read(POINTER, 192));
  };
  fc.assert(
    fc.property(
      body,
      seeds,
      fc.array(fc.integer({ min: 1, max: 900 }), { minLength: 4, maxLength: 4 }),
      (instructions, values, budgets) => {
        const bytes = program(instructions);
        begin(stepped, bytes, values);
        begin(ran, bytes, values);
        for (let turn = 0; ; turn++) {
          const budget = budgets[turn % budgets.length]!;
          const start = ran.vcpu.instructions;
          const exit = ran.vcpu.run({ budget });
          const done = ran.vcpu.instructions - start;
          let stop: unknown;
          for (let n = 0; n < done; n++) stop = stepped.vcpu.step();
          sameState();
          if (exit.kind !== "budget") {
            expect(exit.kind).toBe("hypercall");
            expect(stop).toEqual(exit);
            break;
          }
          expect(done).toBe(budget);
        }
        if (ran.machine.regions.find(TEXT) !== undefined) hot++;
      },
    ),
    { seed: 1, numRuns: 100 },
  );
  expect(hot).toBeGreaterThan(95);
  expect(stepped.machine.regions.activeCount).toBe(0);
});
