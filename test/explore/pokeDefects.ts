// Things that are wrong in how a site is rewritten, each of which an exploration has to find.
//
// The poker's are other sequences of what it does; the kernel's change some text of its sources.

import { type Addr, offset } from "../../src/base/addr.ts";
import type { PokeSettings } from "../../src/explore/settings.ts";
import { BP_PATCHING_DESC, OPCODE, TEXT_POKE_LOC } from "../../src/ftrace/layout.ts";
import { targetOf } from "../../src/ftrace/site.ts";
import type { TextPoke } from "../../src/ftrace/textPoke.ts";
import { serialise, serialiseAll } from "../../src/kernel/quiescence.ts";
import type { Lab } from "../../src/lab.ts";
import type { Step } from "../../src/machine/agenda.ts";
import { StructView } from "../../src/machine/struct.ts";
import type { PokeOptions } from "../../src/poke.ts";
import type { Change } from "../kernel/compiled.ts";

/** Makes steps of one act of the poker's. */
type Act = (lab: Lab, poke: TextPoke) => readonly Step[];

const step = (what: string, act: (lab: Lab, poke: TextPoke) => void): Act => {
  return (lab, poke) => [
    {
      what,
      run: () => {
        act(lab, poke);
        return undefined;
      },
    },
  ];
};

const store = (what: string, from: number, bytesOf: (poke: TextPoke) => Uint8Array): Act =>
  step(what, (lab, poke) => lab.machine.memory.write(offset(poke.ip, from), bytesOf(poke)));

const descOf = (lab: Lab) =>
  new StructView(lab.machine.memory, BP_PATCHING_DESC, lab.symbol("bp_desc").address);

/** One description for all pokes, so that the next one is written over the one before. */
const descriptions = new WeakMap<Lab, Addr>();

function describe(lab: Lab, poke: TextPoke): void {
  const vec = descriptions.get(lab)!;
  const loc = new StructView(lab.machine.memory, TEXT_POKE_LOC, vec);
  loc.set("ip", poke.ip);
  loc.set("target", targetOf(poke.ip, poke.new) ?? 0);
  loc.set("opcode", poke.new[0]!);
  const desc = descOf(lab);
  desc.set("vec", vec);
  desc.set("nr_entries", 1);
  desc.set("refs", 1);
}

const ACTS = {
  describe: step("describe", describe),
  int3: store("int3", 0, () => Uint8Array.of(OPCODE.INT3_INSN_OPCODE)),
  tail: store("tail", 1, (poke) => poke.new.subarray(1)),
  head: store("head", 0, (poke) => poke.new.subarray(0, 1)),
  serialise: (lab) => serialiseAll(lab.kernel, lab.kernel.agenda),
  letGo: step("let go", (lab) => descOf(lab).set("refs", descOf(lab).getNumber("refs") - 1)),
  waitForHandlers: (lab) => [
    {
      what: "wait for handlers",
      ready: () => descOf(lab).getNumber("refs") === 0,
      run: () => undefined,
    },
  ],
  // From here on, what is not right.
  interruptOnly: step("interrupt all", ({ kernel }) => {
    for (const cpu of kernel.cpus) serialise(kernel, cpu);
  }),
  serialiseFirst: ({ kernel }) => [
    {
      what: "have the first CPU serialise",
      run: () => {
        const ready = serialise(kernel, kernel.cpus[0]!);
        return [{ what: "wait for it", ready, run: () => undefined }];
      },
    },
  ],
} as const satisfies Record<string, Act>;
/** The same as `serialise`, but that CPUs are interrupted one after the other, the last one first. */
const serialiseOneByOne: Act = ({ kernel }) => [
  ...kernel.cpus
    .map((cpu, n) => ({
      what: `have CPU ${n} serialise`,
      run: () => {
        serialise(kernel, cpu);
        return undefined;
      },
    }))
    .reverse(),
  {
    what: "wait for all",
    ready: () =>
      kernel.cpus.every(({ struct }) => struct.getNumber("sync_done") === struct.getNumber("sync_wanted")),
    run: () => undefined,
  },
];

type ActName = keyof typeof ACTS;

/** How it is done right. */
export const RIGHT: readonly ActName[] = [
  ...(["describe", "int3", "serialise", "tail", "serialise", "head", "serialise"] as const),
  ...(["letGo", "waitForHandlers"] as const),
];

/** Steps of a poker that does this. */
export function acting(names: readonly ActName[], oneByOne = false): Required<Pick<PokeOptions, "steps">> {
  return {
    steps: (lab, poke, done) => {
      if (!descriptions.has(lab)) descriptions.set(lab, lab.allocate(TEXT_POKE_LOC.size));
      const acts = names.map((name) => (oneByOne && name === "serialise" ? serialiseOneByOne : ACTS[name]));
      const steps = acts.flatMap((act) => act(lab, poke));
      const last = steps.at(-1)!;
      const end = (): readonly Step[] => {
        const more = last.run();
        return more === undefined ? done() : [...more, { what: "end", run: () => done() }];
      };
      return [...steps.slice(0, -1), { ...last, run: end }];
    },
  };
}

export interface PokeDefect {
  readonly name: string;
  readonly found: RegExp;
  readonly acts?: readonly ActName[];
  readonly change?: Change;
  readonly settings?: Partial<PokeSettings>;
}

const TORN = /torn/;
const NO_WAY_ON = /has no way on from #BP at poked/;
const WAITS = /the poker waits for ever/;

const inHandler = (before: string, after: string): Change => ({ file: "kernel/ftrace.c", before, after });

export const POKE_DEFECTS: readonly PokeDefect[] = [
  {
    name: "nobody serialises behind the int3",
    acts: ["describe", "int3", "tail", "serialise", "head", "serialise", "letGo", "waitForHandlers"],
    found: TORN,
  },
  {
    name: "nobody serialises behind the tail",
    acts: ["describe", "int3", "serialise", "tail", "head", "serialise", "letGo", "waitForHandlers"],
    found: TORN,
  },
  {
    name: "nobody serialises behind the first byte",
    acts: ["describe", "int3", "serialise", "tail", "serialise", "head", "letGo", "waitForHandlers"],
    found: NO_WAY_ON,
  },
  {
    name: "the tail is written before the int3",
    acts: [
      ...(["describe", "tail", "serialise", "int3", "serialise", "head", "serialise"] as const),
      ...(["letGo", "waitForHandlers"] as const),
    ],
    found: TORN,
  },
  {
    name: "the first byte is written before the tail",
    acts: [
      ...(["describe", "int3", "serialise", "head", "serialise", "tail", "serialise"] as const),
      ...(["letGo", "waitForHandlers"] as const),
    ],
    found: TORN,
  },
  {
    name: "the description is written behind the int3",
    acts: [
      ...(["int3", "describe", "serialise", "tail", "serialise", "head", "serialise"] as const),
      ...(["letGo", "waitForHandlers"] as const),
    ],
    found: NO_WAY_ON,
  },
  {
    name: "the description is let go before the last serialising",
    acts: [
      ...(["describe", "int3", "serialise", "tail", "serialise", "head"] as const),
      ...(["letGo", "waitForHandlers", "serialise"] as const),
    ],
    found: NO_WAY_ON,
  },
  {
    name: "the description is written over while handlers are in it",
    acts: ["describe", "int3", "serialise", "tail", "serialise", "head"],
    settings: { way: "both" },
    // Of the one poke the opcode, of the other the target: none.
    found: /is at 0x0000000000000000, where no code is/,
  },
  {
    name: "nobody waits for those that were interrupted",
    acts: [
      ...(["describe", "int3", "interruptOnly", "tail", "interruptOnly", "head", "interruptOnly"] as const),
      ...(["letGo", "waitForHandlers"] as const),
    ],
    found: /torn|has no way on/,
  },
  {
    name: "only the first CPU serialises",
    acts: [
      ...([
        "describe",
        "int3",
        "serialiseFirst",
        "tail",
        "serialiseFirst",
        "head",
        "serialiseFirst",
      ] as const),
      ...(["letGo", "waitForHandlers"] as const),
    ],
    settings: { vcpus: 2 },
    found: /vCPU 1 fetches torn/,
  },
  {
    name: "the description is never let go",
    acts: ["describe", "int3", "serialise", "tail", "serialise", "head", "serialise"],
    found: /still held 1 times/,
  },
  {
    name: "a breakpoint goes on behind its own byte, not behind the instruction",
    change: inHandler("u64 next = poke->ip + FTRACE_SITE_SIZE;", "u64 next = poke->ip + 1;"),
    found: /torn bytes at poked\+0x1/,
    settings: { way: "off" },
  },
  {
    name: "an emulated call comes back to the breakpoint",
    change: inHandler("*(u64 *)regs->sp = next;", "*(u64 *)regs->sp = poke->ip;"),
    found: /passes the site twice/,
  },
  {
    name: "an emulated call pushes nothing",
    change: inHandler("regs->sp -= 8;\n			*(u64 *)regs->sp = next;\n", "(void)next;\n"),
    found: /./,
  },
  {
    name: "a breakpoint does what the call does, without a call",
    change: inHandler(
      "regs->ip = poke->target;\n			break;\n		case JMP32",
      "regs->ip = next;\n			regs->sp += 8;\n			break;\n		case JMP32",
    ),
    found: /calls of the handler/,
  },
  {
    name: "a breakpoint is looked for where execution goes on",
    change: inHandler("find_poke(regs->ip - 1)", "find_poke(regs->ip)"),
    found: NO_WAY_ON,
  },
  {
    name: "a handler keeps the description",
    change: inHandler(
      "	__atomic_sub_fetch(&bp_desc.refs, 1, __ATOMIC_SEQ_CST);\n	return poke",
      "	return poke",
    ),
    found: WAITS,
  },
  {
    name: "the frame of a breakpoint has no room for a call",
    change: {
      file: "asm/entry.S",
      before: ".rept 5\n	push INT3_GAP - 8(%rsp)\n.endr\n",
      after: "	jmp 1f\n",
    },
    found: /./,
  },
  {
    name: "who is to serialise does not say that it has",
    change: { file: "kernel/stop.c", before: "		smp_store_release(&cpu->sync_done, wanted);\n", after: "" },
    found: WAITS,
  },
];
