// One scenario of the kernel's own tests: what its log says is held to a transcript, for every order in which things happen.

import { test } from "vitest";
import { compare } from "../../transcript.ts";
import { Rig } from "./rig.ts";

const SEEDS = [1, 2];

export function scenario(title: string, transcript: string, act: (rig: Rig) => void): void {
  test.each(SEEDS)(`${title}, seed %d`, async (seed) => {
    const rig = await Rig.open(seed);
    act(rig);
    compare(transcript, [`===== TEST: ${title} =====`, ...rig.lines]);
    rig.lab.dispose();
  });
}
