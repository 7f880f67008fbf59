// What is asked for while something else is under way waits for its turn, and may be out of place by then.

import { expect, test } from "vitest";
import { Lab } from "../../src/lab.ts";
import type { Patch } from "../../src/livepatch/patch.ts";

test("a patch that is to be disabled twice, turned round and forced goes once", async () => {
  const lab = await Lab.open();
  const { agenda } = lab.kernel;
  const replacement = lab.symbol("leaf_new").address;
  const enable = (name: string, func: string): Patch =>
    lab.livepatch.enable({ name, objects: [{ functions: [{ name: func, replacement }] }] });
  const finish = () => {
    agenda.live = false;
    agenda.finish();
  };
  const first = enable("first", "leaf");
  agenda.live = true;
  for (const _ of "12") lab.livepatch.disable(first);
  lab.livepatch.reverse(first);
  lab.livepatch.force(first);
  finish();
  expect([lab.livepatch.patches, agenda.pending]).toEqual([[], []]);

  // What was its own is given out again, once.
  const patches = [enable("second", "leaf"), enable("third", "nap_between"), enable("fourth", "loop")];
  const structs = patches.flatMap(({ functions }) => functions.map(({ struct }) => struct.at));
  expect(new Set(structs).size).toBe(patches.length);
  lab.dispose();
});
