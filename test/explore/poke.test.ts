// A site that is rewritten while vCPUs call through it: every way that goes, exactly so many states, and whoever does it
// otherwise is caught.

import { afterEach, describe, expect, test, vi } from "vitest";
import { type Addr, offset } from "../../src/base/addr.ts";
import { seeded } from "../../src/explore/chooser.ts";
import { type Exploration, explore } from "../../src/explore/explore.ts";
import { POKE_WAYS, type PokeSettings } from "../../src/explore/settings.ts";
import { WRITERS, type Writer } from "../../src/ftrace/textPoke.ts";
import * as holding from "../../src/kernel/quiescence.ts";
import { PokedSite, type PokeOptions } from "../../src/poke.ts";
import { explorePoke, replayPoke } from "../../src/pokeRun.ts";
import { NO_GCC, partsWith } from "../kernel/compiled.ts";
import { acting, POKE_DEFECTS, RIGHT } from "./pokeDefects.ts";

const SMALL: PokeSettings = { vcpus: 1, calls: 1, way: "on", writer: "breakpoint" };

const opened: PokedSite[] = [];
async function open(settings: Partial<PokeSettings>, options: PokeOptions = {}): Promise<PokedSite> {
  const site = await PokedSite.open({ ...SMALL, ...settings }, options);
  opened.push(site);
  return site;
}
afterEach(() => {
  for (const site of opened.splice(0)) site.lab.dispose();
});

/** What can be seen of a system: each fetch at the site, with what it could have been and how far the poker was; and ends. */
interface Seen {
  readonly fetches: Set<string>;
  readonly ends: Set<string>;
}

function watch(site: PokedSite): Seen {
  const seen = { fetches: new Set<string>(), ends: new Set<string>() };
  site.onFetch = (fetched, vcpu, position) => {
    const could = site.visible()[vcpu]!.map((versions) => versions.join("|"));
    seen.fetches.add(`vCPU ${vcpu} fetches ${fetched} of ${could.join(" ")}, the poker at ${position}`);
  };
  const advance = site.advance.bind(site);
  site.advance = (chooser) => {
    const result = advance(chooser);
    if (result.kind === "over") seen.ends.add(countsOf(site));
    return result;
  };
  return seen;
}

/** How often bodies and handlers were executed, by vCPU. */
function countsOf({ lab, settings }: PokedSite): string {
  const counts = ["poked_bodies", "poked_handled"].map((name) =>
    Array.from({ length: settings.vcpus }, (_, n) =>
      lab.machine.memory.readNumber(offset(lab.symbol(name).address, 8 * n)),
    ),
  );
  return counts.join("; ");
}

const counted = ({ states, transitions, deepest, finding }: Exploration) =>
  finding?.what ?? { states, transitions, deepest };

describe("the breakpoint protocol", () => {
  test.each([
    { vcpus: 1, calls: 1, way: "on", expected: { states: 408, transitions: 569, deepest: 41 } },
    { vcpus: 1, calls: 1, way: "off", expected: { states: 396, transitions: 549, deepest: 32 } },
    { vcpus: 1, calls: 2, way: "both", expected: { states: 1966, transitions: 2840, deepest: 71 } },
    { vcpus: 2, calls: 1, way: "on", expected: { states: 25996, transitions: 53653, deepest: 70 } },
    { vcpus: 2, calls: 1, way: "off", expected: { states: 24572, transitions: 50461, deepest: 60 } },
    { vcpus: 2, calls: 1, way: "both", expected: { states: 59579, transitions: 122869, deepest: 109 } },
  ] as const)(
    "$vcpus vCPUs, $calls calls each, $way",
    { timeout: 60_000 },
    async ({ expected, ...settings }) => {
      const site = await open(settings);
      const { fetches } = watch(site);
      expect(counted(explore(site))).toEqual(expected);
      const kinds = [...fetches].map((fetch) => / fetches (\w+)/.exec(fetch)![1]);
      expect(new Set(kinds)).toEqual(new Set(["nop", "int3", "call"]));
    },
  );

  test("is the sequence of acts that the defects are beside", async () => {
    const [own, acts] = [watch(await open({})), watch(await open({}, acting(RIGHT)))];
    const [a, b] = opened.map((site) => explore(site)) as [Exploration, Exploration];
    expect([a.finding, b.finding]).toEqual([undefined, undefined]);
    expect(acts).toEqual(own);
  });
});

test("CPUs may be interrupted one after the other to serialise", { timeout: 60_000 }, async () => {
  const site = await open({ vcpus: 2 }, acting(RIGHT, true));
  const { states, finding } = explore(site);
  expect(finding).toBeUndefined();
  expect(states).toBeGreaterThan(21_207);
});

describe("an ops that is unregistered while its handler is called", () => {
  /** Off as ftrace does it: the trampoline goes, too. */
  const unregistering: PokeOptions = {
    steps: (lab, _, done) => [
      {
        what: "unregister",
        run: () => {
          lab.ftrace.unregister(lab.ftrace.registered[0]!);
          return [{ what: "end", ready: () => lab.kernel.agenda.pending.length === 1, run: () => done() }];
        },
      },
    ],
  };

  // Whether somebody is in it is asked of every CPU's registers and stack: of one CPU, between any two instructions.
  test.each([
    { vcpus: 1, blocks: false },
    { vcpus: 2, blocks: true },
  ])("loses its trampoline when nobody is in it: %j", { timeout: 120_000 }, async ({ vcpus, blocks }) => {
    const site = await open({ vcpus, way: "off" }, { ...unregistering, blocks });
    const { states, finding } = explore(site);
    expect(finding).toBeUndefined();
    expect(states).toBeGreaterThan(20_000);
  });

  test("is caught if it loses it at once", async () => {
    const site = await open({ way: "off" }, unregistering);
    vi.spyOn(holding, "holder").mockReturnValue(undefined);
    expect(explore(site).finding?.what).toMatch(/where no code is/);
  });
});

describe("what is left out of an exploration", () => {
  test.each([
    { what: "stops between local steps", way: "both", options: { blocks: false }, times: 50 },
    { what: "what lies below stack pointers", way: "both", options: { scrub: false }, times: 1.4 },
    { what: "both at once", way: "off", options: { blocks: false, scrub: false }, times: 500 },
  ] as const)("makes no difference: $what", { timeout: 120_000 }, async ({ way, options, times }) => {
    const [less, more] = [await open({ way }), await open({ way }, options)];
    const seen = [watch(less), watch(more)];
    const explorations = [explore(less), explore(more)];
    for (const { finding } of explorations) expect(finding).toBeUndefined();
    expect(seen[1]).toEqual(seen[0]);
    expect(explorations[1]!.states).toBeGreaterThan(times * explorations[0]!.states);
  });

  test("makes none to two vCPUs: whatever they do instruction by instruction is among it", async () => {
    const blocks = watch(await open({ vcpus: 2, way: "both" }));
    expect(explore(opened[0]!).finding).toBeUndefined();
    const site = await open({ vcpus: 2, way: "both" }, { blocks: false });
    const single = watch(site);
    for (let seed = 0; seed < 300; seed++) {
      site.begin();
      const chooser = seeded(seed);
      for (;;) {
        const advance = site.advance(chooser);
        if (advance.kind === "over") break;
        expect(advance).toEqual({ kind: "on" });
      }
    }
    expect(single.fetches.size).toBeGreaterThan(30);
    expect([...single.fetches].filter((fetch) => !blocks.fetches.has(fetch))).toEqual([]);
    expect([...single.ends].filter((end) => !blocks.ends.has(end))).toEqual([]);
  });

  test("is nobody else's: what a local step touches, only its own CPU does, or nobody writes", async () => {
    const site = await open({ vcpus: 2, way: "both" });
    const { machine, lab, locality } = site;
    const local = vi.spyOn(locality, "isLocal");
    /** By word: who reads it, who writes it, and whether a local step was among them. */
    const words = new Map<Addr, { readers: Set<number>; writers: Set<number>; local: boolean }>();
    const trace = machine.trace({ accesses: true }, (event) => {
      if (event.kind !== "read" && event.kind !== "write") return;
      const isLocal = local.mock.results.at(-1)?.value === true;
      for (let at = event.address; at < event.address + event.size; at = offset(at, 1)) {
        const word = offset(at, -(at & 7));
        const use = words.get(word) ?? { readers: new Set(), writers: new Set(), local: false };
        words.set(word, use);
        (event.kind === "read" ? use.readers : use.writers).add(event.vcpu);
        use.local ||= isLocal;
      }
      local.mock.results.splice(0, local.mock.results.length - 1);
    });
    // The poker's writes: what lies in words that vCPUs have touched, before its steps and behind them.
    const { agenda } = lab.kernel;
    const step = agenda.step.bind(agenda);
    const pokers = new Set<Addr>();
    agenda.step = (strand) => {
      const before = [...words.keys()].map((word) => machine.memory.readWord(word));
      step(strand);
      for (const [n, word] of [...words.keys()].entries())
        if (machine.memory.readWord(word) !== before[n]) pokers.add(word);
    };
    for (let seed = 0; seed < 150; seed++) {
      site.begin();
      const chooser = seeded(seed);
      while (site.advance(chooser).kind === "on");
    }
    trace.stop();
    expect(pokers.size).toBeGreaterThan(0);
    for (const [word, { readers, writers, local: isLocal }] of words) {
      if (!isLocal) continue;
      const users = new Set([...readers, ...writers]);
      if (writers.size > 0) expect([lab.code.describe(word), users.size]).toEqual([expect.anything(), 1]);
      expect([lab.code.describe(word), pokers.has(word)]).toEqual([expect.anything(), false]);
    }
  });
});

describe.each(Object.keys(WRITERS).filter((name) => name !== "breakpoint") as Writer[])(
  "the writer %s",
  (writer) => {
    test.each(POKE_WAYS.flatMap((way) => [1, 2].map((vcpus) => ({ way, vcpus }))))(
      "is caught tearing, $way with $vcpus vCPUs, and again in a replay",
      async (which) => {
        const { finding, lines, record } = await explorePoke({ ...SMALL, ...which, writer });
        expect(finding).toMatch(/^vCPU \d fetches torn bytes at poked\+0x0/);
        expect(lines.length).toBeLessThan(4);
        expect(lines.at(-1)?.actor).not.toBe("poker");
        const again = await replayPoke("the record", record);
        expect(again).toEqual({ lines, end: record.end, same: true });
      },
    );
  },
);

describe("a defect", () => {
  test.for(POKE_DEFECTS)("$name", { timeout: 60_000 }, async ({ acts, change, settings, found }, ctx) => {
    if (NO_GCC !== undefined && change?.file.startsWith("kernel/")) ctx.skip(NO_GCC);
    const options = {
      ...(acts === undefined ? {} : acting(acts)),
      ...(change === undefined ? {} : { parts: partsWith(change) }),
    };
    const { finding, record } = await explorePoke({ ...SMALL, ...settings }, options);
    expect(finding).toMatch(found);
    expect((await replayPoke("the record", record, options)).same).toBe(true);
  });

  test("is none: who is to serialise executes no cpuid, but the iretq of the interrupt", async (ctx) => {
    if (NO_GCC !== undefined) ctx.skip(NO_GCC);
    const parts = partsWith({ file: "kernel/stop.c", before: "		sync_core(NULL);\n", after: "" });
    expect(explore(await open({}, { parts })).finding).toBeUndefined();
  });

  test("there are at least fifteen, no two alike", () => {
    expect(POKE_DEFECTS.length).toBeGreaterThanOrEqual(15);
    expect(new Set(POKE_DEFECTS.map(({ name }) => name)).size).toBe(POKE_DEFECTS.length);
  });
});

test("a way without a finding ends as it was recorded", async () => {
  const { finding, record, lines } = await explorePoke({ ...SMALL, vcpus: 1, way: "both" });
  expect(finding).toBeNull();
  const again = await replayPoke("the record", record);
  expect(again).toEqual({ lines, end: record.end, same: true });
});
