// Guest linear addresses.
//
// A canonical x86-64 address is 48 bits, sign-extended: a JavaScript number holds it exactly,
// kernel addresses as negative numbers. Numbers are several times cheaper than bigints in the
// engine's hot paths, so every address in this project is one; only this file converts and prints.

declare const brand: unique symbol;

/** A canonical 48-bit linear address, sign-extended; kernel addresses are negative. */
export type Addr = number & { readonly [brand]: "Addr" };

export const PAGE_SIZE = 4096;

const LIMIT = 2 ** 47;

/** True if `value`, read as a signed 64-bit number, is canonical (Intel SDM vol. 1, 3.3.7.1). */
export function isCanonical(value: number | bigint): boolean {
  const signed = typeof value === "bigint" ? BigInt.asIntN(64, value) : value;
  return signed >= -LIMIT && signed < LIMIT && (typeof signed === "bigint" || Number.isInteger(signed));
}

/** What `addr` throws: of words that guest code has written, a value like any other. */
export class NotCanonical extends RangeError {}

/** The address of a signed number or of a bigint in either signedness. Throws NotCanonical if it is none. */
export function addr(value: number | bigint): Addr {
  const signed = typeof value === "bigint" ? BigInt.asIntN(64, value) : value;
  if (!isCanonical(signed)) throw new NotCanonical(`0x${toHex64(value)} is not a canonical address`);
  return Number(signed) as Addr;
}

/** `base + bytes`, which must stay canonical. */
export function offset(base: Addr, bytes: number): Addr {
  return addr(base + bytes);
}

/** The address of the first byte of the page that holds `at`. */
export function pageOf(at: Addr): Addr {
  return (Math.floor(at / PAGE_SIZE) * PAGE_SIZE) as Addr;
}

/** The addresses of the pages that `[at, at + size)` touches, ascending. */
export function pagesOf(at: Addr, size: number): Addr[] {
  const pages: Addr[] = [];
  for (let page = pageOf(at); page < at + size; page = (page + PAGE_SIZE) as Addr) pages.push(page);
  return pages;
}

/** `at` as an unsigned 64-bit bigint, the form in which registers and memory words hold it. */
export function toWord(at: Addr): bigint {
  return BigInt.asUintN(64, BigInt(at));
}

/** How every address is printed: `0xffffffff81000000`, sixteen digits. */
export function hex(at: Addr): string {
  return `0x${toHex64(at)}`;
}

function toHex64(value: number | bigint): string {
  return BigInt.asUintN(64, BigInt(value)).toString(16).padStart(16, "0");
}
