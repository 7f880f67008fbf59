// Where the returns of a region probably lead, from its calls and branches alone.

import { Mnemonic } from "../decode.ts";
import type { Block } from "./region.ts";

/**
 * By block that ends in a return: the blocks after the calls that may lead to it, as the code stands.
 * A guess: code may return elsewhere.
 */
export function returnPoints(blocks: readonly Block[]): Map<number, number[]> {
  const entries = new Map(blocks.map(({ ip }, index) => [ip, index]));
  const points = new Map<number, number[]>();
  blocks.forEach(({ instructions }) => {
    const call = instructions.at(-1)!;
    const back = entries.get(call.next);
    const callee = call.operands[0];
    if (call.mnemonic !== Mnemonic.Call || back === undefined || callee?.kind !== "target") return;
    const seen = new Set<number>();
    const pending = [callee.at];
    while (pending.length > 0) {
      const index = entries.get(pending.pop()!);
      if (index === undefined || seen.has(index)) continue;
      seen.add(index);
      const last = blocks[index]!.instructions.at(-1)!;
      if (last.mnemonic === Mnemonic.Ret) {
        points.set(index, [...(points.get(index) ?? []), back]);
        continue;
      }
      const target = last.operands[0];
      if (target?.kind === "target" && last.mnemonic !== Mnemonic.Call) pending.push(target.at);
      if (last.mnemonic !== Mnemonic.Jmp) pending.push(last.next);
    }
  });
  return points;
}
