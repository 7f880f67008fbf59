// Guest memory from the laboratory's side: mapping, refusals, bytes and words across pages.

import { beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr, offset, PAGE_SIZE } from "../../src/base/addr.ts";
import { Host } from "../../src/machine/host.ts";
import { Memory } from "../../src/machine/memory.ts";
import { RO, RW, RWX, RX } from "./guest.ts";

const A = addr(0xffff_8880_0000_0000n);
const page = (n: number): Addr => offset(A, n * PAGE_SIZE);
const filled = (size: number) => Uint8Array.from({ length: size }, (_, n) => (n * 7 + 1) & 0xff);

let memory: Memory;
let heard: string[];
beforeEach(() => {
  heard = [];
  memory = new Memory(new Host(), {
    revoked: (at) => heard.push(`revoked ${at - A}`),
    codeWritten: (at, size) => heard.push(`code ${at - A} ${size}`),
  });
});

const reads = (at: Addr) => () => memory.read(at, 1);

describe("mapping", () => {
  test("is zeroed, in whole pages around what was asked for", () => {
    memory.map(offset(A, 4000), 200, RW);
    expect(memory.read(A, 2 * PAGE_SIZE)).toEqual(new Uint8Array(2 * PAGE_SIZE));
    expect(reads(page(2))).toThrow("guest memory at 0xffff888000002000 is not mapped");
    expect([memory.isMapped(A, 8192), memory.isMapped(A, 8193), memory.isMapped(offset(A, -1), 2)]).toEqual([
      true,
      false,
      false,
    ]);
  });

  test("is refused over what is mapped, and then maps nothing", () => {
    memory.map(page(2), 1, RW);
    expect(() => memory.map(A, 4 * PAGE_SIZE, RW)).toThrow(
      "guest memory at 0xffff888000002000 is mapped already",
    );
    expect([0, 1, 3].map((n) => memory.isMapped(page(n), 1))).toEqual([false, false, false]);
  });

  test("works at both ends of the address space", () => {
    for (const at of [addr(-PAGE_SIZE), addr(0), addr(2 ** 47 - PAGE_SIZE), addr(-(2 ** 47))]) {
      memory.map(at, PAGE_SIZE, RW);
      memory.write(offset(at, 4088), filled(8));
      expect(memory.read(offset(at, 4088), 8)).toEqual(filled(8));
    }
  });

  test("keeps every page apart when there are more than memory was reserved for", () => {
    const count = 10_000; // 40 MB
    memory.map(A, count * PAGE_SIZE, RW);
    for (let n = 0; n < count; n += 499) memory.writeWord(page(n), BigInt(n));
    for (let n = 0; n < count; n += 499) expect(memory.readWord(page(n))).toBe(BigInt(n));
  });

  test("unmapped pages are gone, and zeroed when they are used again", () => {
    memory.map(A, 2 * PAGE_SIZE, RW);
    memory.write(A, filled(2 * PAGE_SIZE));
    memory.unmap(A, PAGE_SIZE);
    expect(reads(A)).toThrow("not mapped");
    expect(memory.read(page(1), 4)).toEqual(filled(2 * PAGE_SIZE).slice(PAGE_SIZE, PAGE_SIZE + 4));
    memory.map(page(7), PAGE_SIZE, RW);
    expect(memory.read(page(7), PAGE_SIZE)).toEqual(new Uint8Array(PAGE_SIZE));
    expect(heard).toEqual(["revoked 0"]);
  });

  test("protect changes what find says, not the bytes", () => {
    memory.map(A, PAGE_SIZE, RW);
    memory.write(A, filled(8));
    memory.protect(A, PAGE_SIZE, RX);
    expect(memory.find(offset(A, 5))?.access).toEqual(RX);
    expect(memory.read(A, 8)).toEqual(filled(8));
    memory.write(A, Uint8Array.of(9)); // the laboratory's own writes obey no permission
    expect(memory.read(A, 1)).toEqual(Uint8Array.of(9));
  });
});

describe("an alias", () => {
  test("shows the same bytes, with an access of its own, and outlives the first", () => {
    memory.map(A, 2 * PAGE_SIZE, RX);
    memory.alias(page(8), A, 2 * PAGE_SIZE, RW);
    memory.write(offset(page(8), 4090), filled(12));
    expect(memory.read(offset(A, 4090), 12)).toEqual(filled(12));
    expect([memory.find(A)?.access, memory.find(page(8))?.access]).toEqual([RX, RW]);
    memory.unmap(A, 2 * PAGE_SIZE);
    memory.map(page(20), 2 * PAGE_SIZE, RW); // must not get the frames that are still shown
    memory.write(page(20), new Uint8Array(2 * PAGE_SIZE).fill(0xff));
    expect(memory.read(offset(page(8), 4090), 12)).toEqual(filled(12));
  });

  test("of code hears of writes through either", () => {
    memory.map(A, PAGE_SIZE, RX);
    memory.alias(page(3), A, PAGE_SIZE, RW);
    memory.markCode(A);
    expect(heard).toEqual(["revoked 0", "revoked 12288"]);
    heard.length = 0;
    memory.write(offset(page(3), 10), filled(4));
    expect(heard.sort()).toEqual(["code 10 4", "code 12298 4"]);
  });
});

describe("a refused act changes nothing", () => {
  beforeEach(() => {
    memory.map(A, 2 * PAGE_SIZE, RW); // and nothing at page 2
    memory.write(A, filled(2 * PAGE_SIZE));
    heard.length = 0;
  });

  const unchanged = () => {
    expect(memory.read(A, 2 * PAGE_SIZE)).toEqual(filled(2 * PAGE_SIZE));
    expect([memory.find(A)?.access, memory.find(page(1))?.access]).toEqual([RW, RW]);
    expect(heard).toEqual([]);
  };

  test.each([
    ["write", () => memory.write(offset(page(2), -8), filled(16).fill(0))],
    ["write over a hole", () => memory.write(A, new Uint8Array(4 * PAGE_SIZE))],
    ["read", () => memory.read(offset(page(2), -8), 16)],
    ["writeWord", () => memory.writeWord(offset(page(2), -4), 0n)],
    ["unmap", () => memory.unmap(A, 3 * PAGE_SIZE)],
    ["protect", () => memory.protect(A, 3 * PAGE_SIZE, RO)],
  ])("%s", (_, act) => {
    expect(act).toThrow("guest memory at 0xffff888000002000 is not mapped");
    unchanged();
  });

  test("alias of what is partly unmapped, and onto what is partly mapped", () => {
    expect(() => memory.alias(page(8), A, 3 * PAGE_SIZE, RWX)).toThrow("not mapped");
    expect([8, 9, 10].map((n) => memory.isMapped(page(n), 1))).toEqual([false, false, false]);
    memory.map(page(12), PAGE_SIZE, RW);
    expect(() => memory.alias(page(11), A, 2 * PAGE_SIZE, RWX)).toThrow("mapped already");
    expect(memory.isMapped(page(11), 1)).toBe(false);
    unchanged();
  });
});

test("words are little-endian, unsigned, at any address", () => {
  memory.map(A, 2 * PAGE_SIZE, RW);
  const at = offset(A, 4093);
  memory.writeWord(at, -2n);
  expect(memory.readWord(at)).toBe(2n ** 64n - 2n);
  expect([...memory.read(at, 8)]).toEqual([0xfe, ...new Array(7).fill(0xff)]);
  expect(memory.readWord(offset(at, 1))).toBe(0x00ff_ffff_ffff_ffffn);
});

test("what is read is a copy", () => {
  memory.map(A, PAGE_SIZE, RW);
  const copy = memory.read(A, 4);
  copy.fill(9);
  expect(memory.read(A, 4)).toEqual(new Uint8Array(4));
});
