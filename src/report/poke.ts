// What an exploration of a site that is rewritten came to, as a document and as people read it.

import { table } from "./text.ts";

interface Settings {
  readonly vcpus: number;
  readonly calls: number;
  readonly way: string;
  readonly writer: string;
}

interface Line {
  readonly actor: number | "poker";
  readonly what: string;
  readonly instructions: number;
  readonly visible: readonly (readonly (readonly number[])[])[];
}

interface Explored {
  readonly settings: Settings;
  readonly states: number;
  readonly transitions: number;
  readonly deepest: number;
  readonly finding: string | null;
}

export interface PokeReport {
  readonly explored: readonly Explored[];
  /** The way to what was found. */
  readonly lines?: readonly Line[];
}

export interface PokeReplayReport {
  readonly settings: Settings;
  readonly lines: readonly Line[];
  readonly end: { readonly steps: number; readonly finding: string | null; readonly hash: string };
  readonly same: boolean;
}

const WAYS: Readonly<Record<string, string>> = {
  on: "on (NOP to call)",
  off: "off (call to NOP)",
  both: "on and off again",
};

export function renderPoke({ explored, lines }: PokeReport, recordedIn: string | undefined): string {
  const [first] = explored;
  const found = explored.find(({ finding }) => finding !== null);
  const states = explored.reduce((sum, each) => sum + each.states, 0);
  const rows = explored.map(({ settings: { vcpus, calls }, finding, ...counts }) => [
    `${vcpus} vCPU${vcpus === 1 ? "" : "s"}, ${calls} call${calls === 1 ? "" : "s"} each`,
    `${counts.states} states`,
    `${counts.transitions} transitions`,
    `deepest way ${counts.deepest} steps`,
    finding === null ? "nothing found" : "FOUND",
  ]);
  const verdict =
    found === undefined || lines === undefined
      ? [
          `Every interleaving and every choice of bytes, ${states} states: nothing was executed but the whole old instruction,`,
          "int3 and the whole new one, and every call executed its body once, and its handler as often as it should.",
        ]
      : [
          ...wayTo(lines),
          "",
          `FOUND: ${found.finding}`,
          ...(recordedIn === undefined
            ? ["Keep it with `--record FILE`; `fentrylab poke --replay FILE` shows it again."]
            : []),
        ];
  const title = first === undefined ? [] : [heading(first.settings), ...table(rows), ""];
  return [...title, ...verdict, ""].join("\n");
}

export function renderPokeReplay(file: string, report: PokeReplayReport): string {
  const { settings, lines, end, same } = report;
  return [
    `${file}: ${heading(settings)}`,
    ...wayTo(lines),
    "",
    end.finding === null ? "nothing found wrong" : `FOUND: ${end.finding}`,
    same ? "The same end, step for step." : "NOT the same as when it was recorded.",
    "",
  ].join("\n");
}

function heading({ way, writer }: Settings): string {
  return `One site is rewritten, ${WAYS[way] ?? way}; writer: ${writer}.`;
}

/** Step by step: who, what, and what is at the site then; for a vCPU that may fetch something else, what that is. */
function wayTo(lines: readonly Line[]): string[] {
  const vcpus = lines[0]?.visible.length ?? 0;
  const head = [
    "",
    "step",
    "who",
    "what",
    "site",
    ...Array.from({ length: vcpus }, (_, n) => `vCPU ${n} may fetch`),
  ];
  const rows = lines.map(({ actor, what, instructions, visible }, n) => {
    const memory = (visible[0] ?? []).map((versions) => byte(versions.at(-1)));
    return [
      "",
      String(n + 1),
      actor === "poker" ? actor : `vCPU ${actor}`,
      instructions > 1 ? `${what} (${instructions} instructions)` : what,
      memory.join(" "),
      ...visible.map((bytes) =>
        bytes.every(({ length }) => length === 1)
          ? ""
          : bytes.map((all) => all.map(byte).join("|")).join(" "),
      ),
    ];
  });
  return table([head, ...rows]);
}

function byte(value: number | undefined): string {
  return (value ?? 0).toString(16).padStart(2, "0");
}
