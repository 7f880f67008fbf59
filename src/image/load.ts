// An image into a machine's memory, with the permissions of its segments.

import { PAGE_SIZE } from "../base/addr.ts";
import type { Memory } from "../machine/memory.ts";
import type { Image } from "./image.ts";

/** Maps and fills every segment of `image`, for user mode too if `user`. Refuses addresses that are mapped already. */
export function load(memory: Memory, image: Image, user = false): void {
  for (const { address, size, bytes, write, execute } of image.segments) {
    memory.map(address, size, { write, execute, user });
    memory.write(address, bytes);
    if (!execute) continue;
    // Nothing lies between the text's end and its page's: a jump there traps.
    const end = address + size;
    const rest = Math.ceil(end / PAGE_SIZE) * PAGE_SIZE - end;
    memory.write((address + size) as typeof address, new Uint8Array(rest).fill(0xcc));
  }
}

export function unload(memory: Memory, image: Image): void {
  for (const { address, size } of image.segments) memory.unmap(address, size);
}
