// The kernel's log: a ring of text in guest memory, a line each, with the time as the kernel prints it.

import { type Addr, offset, PAGE_SIZE } from "../base/addr.ts";
import type { Heap } from "../machine/heap.ts";
import type { Memory } from "../machine/memory.ts";

const RING_BYTES = 16 * PAGE_SIZE;
const MAX_TEXT = 256;
const NEWLINE = 10;

export class Log {
  private readonly memory: Memory;
  private readonly ring: Addr;
  /** A word: how many bytes were ever written. */
  private readonly written: Addr;
  private readonly now: () => number;

  /** `now` is the clock, in nanoseconds. */
  constructor(memory: Memory, heap: Heap, now: () => number) {
    this.memory = memory;
    this.now = now;
    this.written = heap.allocate(8, 8);
    this.ring = heap.allocate(RING_BYTES, PAGE_SIZE);
  }

  /** What is left of it, the oldest line first, without their ends. */
  get lines(): string[] {
    const total = Number(this.memory.readWord(this.written));
    const from = Math.max(0, total - RING_BYTES);
    const at = from % RING_BYTES;
    const size = total - from;
    const head = this.memory.read(offset(this.ring, at), Math.min(size, RING_BYTES - at));
    const tail = this.memory.read(this.ring, size - head.length);
    const lines = (new TextDecoder().decode(head) + new TextDecoder().decode(tail)).split("\n");
    lines.pop();
    return from === 0 ? lines : lines.slice(1); // the first has lost its beginning
  }

  /** Each line of `text` with the time before it: `[    0.001234] text`. */
  print(text: string): void {
    const stamp = `[${(this.now() / 1e9).toFixed(6).padStart(12)}] `;
    for (const line of text.split("\n")) this.append(new TextEncoder().encode(`${stamp}${line}\n`));
  }

  /** What guest code prints: `words` for each %d, %u, %x, %p and %s, of int or with an l or z before it of 64 bits. */
  printf(format: Addr, words: readonly bigint[]): void {
    this.print(formatText(this.text(format), words, (at) => this.text(at)).replace(/\n$/, ""));
  }

  /** The text at an address, to its zero byte. */
  text(at: Addr): string {
    let end = 0;
    while (end < MAX_TEXT && this.memory.isMapped(offset(at, end), 1)) {
      if (this.memory.read(offset(at, end), 1)[0] === 0) break;
      end++;
    }
    return new TextDecoder().decode(this.memory.read(at, end));
  }

  private append(bytes: Uint8Array): void {
    const total = Number(this.memory.readWord(this.written));
    const cut = bytes.length > MAX_TEXT ? Uint8Array.of(...bytes.subarray(0, MAX_TEXT - 1), NEWLINE) : bytes;
    const at = total % RING_BYTES;
    const room = RING_BYTES - at;
    this.memory.write(offset(this.ring, at), cut.subarray(0, room));
    if (cut.length > room) this.memory.write(this.ring, cut.subarray(room));
    this.memory.writeWord(this.written, BigInt(total + cut.length));
  }
}

/** A printf's text. What a word is missing for stays as it is. */
export function formatText(format: string, words: readonly bigint[], textAt: (at: Addr) => string): string {
  let next = 0;
  return format.replace(
    /%(-?\d*)(l{0,2}|z|h{0,2})([duxps%])/g,
    (all, width: string, length: string, kind: string) => {
      if (kind === "%") return "%";
      const word = words[next++];
      if (word === undefined) return all;
      const text = formatWord(word, length, kind, textAt);
      const wide = Math.max(-MAX_TEXT, Math.min(Number(width), MAX_TEXT));
      if (wide < 0) return text.padEnd(-wide);
      return text.padStart(wide, width.startsWith("0") ? "0" : " ");
    },
  );
}

function formatWord(word: bigint, length: string, kind: string, textAt: (at: Addr) => string): string {
  const bits = length.startsWith("l") || length === "z" || kind === "p" ? 64 : 32;
  switch (kind) {
    case "d":
      return BigInt.asIntN(bits, word).toString();
    case "u":
      return BigInt.asUintN(bits, word).toString();
    case "s":
      return textAt(Number(BigInt.asIntN(64, word)) as Addr);
    default:
      return BigInt.asUintN(bits, word)
        .toString(16)
        .padStart(kind === "p" ? 16 : 0, "0");
  }
}
