// What comes of exploring a site that is rewritten; and one way through it again, told step by step.

import { refuse } from "./base/refuse.ts";
import { recorded } from "./explore/chooser.ts";
import { explore, type Finding, type Way } from "./explore/explore.ts";
import type { PokeSettings } from "./explore/settings.ts";
import { PokedSite, type PokeEvent, type PokeOptions } from "./poke.ts";
import type { PokeEnd, PokeRecord } from "./pokeRecord.ts";

/** A step, with what is at the site behind it. */
export interface PokeLine extends PokeEvent {
  /** What each vCPU may fetch there, byte by byte: the last of each is what memory has. */
  readonly visible: readonly (readonly (readonly number[])[])[];
}

export interface PokeFacts {
  readonly settings: PokeSettings;
  readonly states: number;
  readonly transitions: number;
  /** Steps of the longest way. */
  readonly deepest: number;
  /** What is wrong; null if nothing was found. */
  readonly finding: string | null;
  /** One of the shortest ways to it; without a finding, the longest to an end. */
  readonly lines: readonly PokeLine[];
  readonly record: PokeRecord;
}

export interface PokeExploreOptions extends PokeOptions {
  readonly onProgress?: (states: number) => void;
}

/** Goes every way, up to the first on which something is wrong. */
export async function explorePoke(
  settings: PokeSettings,
  { onProgress, ...options }: PokeExploreOptions = {},
): Promise<PokeFacts> {
  const site = await PokedSite.open(settings, options);
  try {
    const origin = hashOf(site);
    const progress = onProgress === undefined ? {} : { onProgress };
    const { states, transitions, deepest, longest, finding: first } = explore(site, progress);
    let shortest: Finding | undefined;
    if (first !== undefined) {
      site.begin();
      shortest = explore(site, { order: "breadth", ...progress }).finding ?? first;
    }
    const way = shortest ?? longest;
    const finding = shortest?.what ?? null;
    const { lines } = tell(site, way);
    const end: PokeEnd = { steps: way.steps, finding, hash: hashOf(site) };
    const record: PokeRecord = { settings, origin, choices: way.choices, end };
    return { settings, states, transitions, deepest, finding, lines, record };
  } finally {
    site.lab.dispose();
  }
}

export interface PokeReplay {
  readonly lines: readonly PokeLine[];
  readonly end: PokeEnd;
  /** Whether that is how it ended when it was recorded. */
  readonly same: boolean;
}

/** Goes the way of a record again. Refuses one of another kernel; `file` is where it is from. */
export async function replayPoke(
  file: string,
  { settings, origin, choices, end: then }: PokeRecord,
  options: PokeOptions = {},
): Promise<PokeReplay> {
  const site = await PokedSite.open(settings, options);
  try {
    const now = hashOf(site);
    if (now !== origin) refuse("record-origin", { file, recorded: origin, now });
    const { lines, steps, wrong } = tell(site, { steps: then.steps, choices });
    // Where somebody is caught without a way out, no step is wrong: the state is the same.
    const hash = hashOf(site);
    const caught = hash === then.hash && steps === then.steps;
    const end: PokeEnd = { steps, finding: wrong ?? (caught ? then.finding : null), hash };
    const same = caught && end.finding === then.finding;
    return { lines, end, same };
  } finally {
    site.lab.dispose();
  }
}

interface Told {
  readonly lines: readonly PokeLine[];
  /** One more than lines where what is wrong is that nobody can go on. */
  readonly steps: number;
  readonly wrong: string | undefined;
}

/** Goes it, from the beginning. */
function tell(site: PokedSite, { steps, choices }: Way): Told {
  const lines: PokeLine[] = [];
  const chooser = recorded(choices);
  let wrong: string | undefined;
  site.onStep = (event) => lines.push({ ...event, visible: site.visible() });
  site.begin();
  let made = 0;
  for (; made < steps && wrong === undefined; made++) {
    const advance = site.advance(chooser);
    if (advance.kind === "over") break;
    if (advance.kind === "wrong") wrong = advance.what;
  }
  site.onStep = undefined;
  return { lines, steps: made, wrong };
}

function hashOf({ machine }: PokedSite): string {
  return machine.hash().toString(16).padStart(16, "0");
}
