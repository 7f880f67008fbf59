// Fetching where a vCPU may not have seen what others stored: byte by byte, as the machine's chooser says.

import { type Addr, offset, PAGE_SIZE, pageOf } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { type Decoded, decode, MAX_LENGTH, printInstruction } from "../x86/decode.ts";
import { contentsOf, indexesOf, versionsOf } from "./byteHistory.ts";
import { type FetchLog, stretchOf } from "./fetchLog.ts";
import type { Memory } from "./memory.ts";
import { type ContestedByte, chosenVersion, type MixedFetch } from "./staleCode.ts";

/** An instruction of other bytes than memory has. */
export interface StaleFetch {
  readonly ip: Addr;
  /** As many as it took to decode them. */
  readonly bytes: Uint8Array;
  /** `truncated` where it goes on in a page that may not be fetched. */
  readonly decoded: Decoded;
  /** Given if memory had these bytes at no instant. */
  readonly mixed: MixedFetch | undefined;
}

/**
 * What the vCPU of `log` fetches at `ip`, where `may` says what it is allowed to fetch; undefined if that is what
 * memory has, or cannot be fetched at all. Every contested byte that decoding needs is chosen.
 */
export function fetchStale(
  memory: Memory,
  log: FetchLog,
  ip: Addr,
  may: (at: Addr) => boolean,
): StaleFetch | undefined {
  const page = memory.find(ip);
  const start = ip - pageOf(ip);
  const history = page && log.get(stretchOf(page.frame, start));
  if (history === undefined || !may(ip)) return undefined;
  const here = Math.min(MAX_LENGTH, PAGE_SIZE - start);
  const following = (ip + here) as Addr;
  const second = here < MAX_LENGTH && may(following) ? memory.find(following) : undefined;
  const present = memory.read(ip, second === undefined ? here : MAX_LENGTH);
  const indexes = indexesOf(history);
  const places = Array.from(present, (_, n) => {
    const host = n < here ? page!.frame.at + start + n : second!.frame.at + n - here;
    return indexes.get(host) ?? -1;
  });
  const bytes = present.slice();
  const contested: ContestedByte[] = [];
  for (const [n, place] of places.entries()) {
    const versions = place < 0 ? [] : versionsOf(history, place);
    if (versions.length < 2) continue;
    if (decode(bytes.subarray(0, n), ip).kind !== "truncated") break; // it ends before
    const byte = { vcpu: log.index, ip, at: offset(ip, n), versions };
    contested.push(byte);
    bytes[n] = chosenVersion(log.options.choose, byte);
  }
  if (contested.length === 0) return undefined;
  const decoded = decode(bytes, ip);
  const size = sizeOf(decoded, bytes, ip);
  const [fetched, now] = [bytes.slice(0, size), present.slice(0, size)];
  if (sameBytes(fetched, now)) return undefined;
  const instants = contentsOf(history, places.slice(0, size), now);
  const torn = !instants.some((content) => sameBytes(content, fetched));
  const text = decoded.kind === "instruction" ? printInstruction(fetched, ip) : "(bad)";
  const mixed = torn ? { vcpu: log.index, ip, bytes: fetched, text, contested, instants } : undefined;
  return { ip, bytes: fetched, decoded, mixed };
}

/** The values that the vCPU of `log` may fetch of each of the bytes of an instruction at `ip`, the one that memory has last. */
export function visibleBytes(memory: Memory, log: FetchLog, ip: Addr, size: number): number[][] {
  const page = memory.find(ip);
  const start = ip - pageOf(ip);
  const history = page && log.get(stretchOf(page.frame, start));
  return Array.from(memory.read(ip, size), (byte, n) => {
    const index = history && indexesOf(history).get(page.frame.at + start + n);
    return index === undefined || history === undefined ? [byte] : versionsOf(history, index);
  });
}

/** How many of `bytes` it takes to see what they are. */
function sizeOf(decoded: Decoded, bytes: Uint8Array, ip: Addr): number {
  if (decoded.kind === "instruction") return decoded.instruction.length;
  let size = 1;
  while (size < bytes.length && decode(bytes.subarray(0, size), ip).kind === "truncated") size++;
  return size;
}
