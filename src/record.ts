// A run in a file: what it was made with, what was chosen, and what came of it. JSON, one document.

import { readInput } from "./base/file.ts";
import { refuse } from "./base/refuse.ts";
import { type Choices, countOf, STRIDE } from "./explore/chooser.ts";
import { MAX_COPIES, MAX_VCPUS, type RunSettings } from "./explore/settings.ts";
import { LOG_LEVELS, WEAKENINGS } from "./livepatch/options.ts";

export interface RunRecord {
  readonly settings: RunSettings;
  /** The seed of the choices, for people: a replay takes them from here. */
  readonly seed: number;
  /** Of the machine before the run: a record is of one kernel, to the byte. */
  readonly origin: string;
  readonly choices: Choices;
  readonly end: {
    readonly kind: string;
    readonly finding: string | null;
    readonly instructions: number;
    readonly hash: string;
  };
}

/** What the file says it is. */
const FORMAT = "fentrylab run 1";

export function writeRecord(record: RunRecord): string {
  return `${JSON.stringify({ format: FORMAT, ...record, choices: counted(record.choices) })}\n`;
}

/** As records have them: one that lacks some does not pass for a shorter one. */
export function counted({ kinds, answers }: Choices) {
  return { kinds, count: countOf({ kinds, answers }), answers };
}

/** Refuses what `writeRecord` has not written. */
export function readRecord(path: string): RunRecord {
  const refused = (what: string) => refuse("record-file", { file: path, what });
  const top = readDocument(path, FORMAT, refused);
  const settings = top.object("settings");
  if (!settings.flag("patches") && settings.list("weakened").length > 0)
    refused("it weakens live patching, and has none");
  const end = top.object("end");
  return {
    settings: {
      vcpus: settings.whole("vcpus", 1, MAX_VCPUS),
      copies: settings.whole("copies", 1, MAX_COPIES),
      rounds: settings.whole("rounds", 1),
      budget: settings.whole("budget", 1),
      patches: settings.flag("patches"),
      weakened: settings
        .list("weakened")
        .map(
          (name) =>
            WEAKENINGS.find((known) => known === name) ?? refused(`it weakens ${name}, which is not known`),
        ),
      every: settings.whole("every", 0),
      logLevel: settings.oneOf("logLevel", LOG_LEVELS),
    },
    seed: top.whole("seed", 0),
    origin: top.text("origin"),
    choices: readChoices(top.object("choices"), refused),
    end: {
      kind: end.text("kind"),
      finding: end.textOrNull("finding"),
      instructions: end.whole("instructions", 0),
      hash: end.text("hash"),
    },
  };
}

/** Says that a file is not what it should be. */
export type Refused = (what: string) => never;

/** A JSON file that says of itself that it is of this format. */
export function readDocument(path: string, format: string, refused: Refused): Fields {
  const text = new TextDecoder().decode(readInput(path));
  let document: unknown;
  try {
    document = JSON.parse(text);
  } catch (error) {
    return refused(`it is no JSON (${error instanceof Error ? error.message : error})`);
  }
  const top = new Fields(document, "the document", refused);
  return top.text("format") === format ? top : refused(`its format is not "${format}"`);
}

export function readChoices(choices: Fields, refused: Refused): Choices {
  const kinds = choices
    .list("kinds")
    .map((kind) => (typeof kind === "string" ? kind : refused("a kind is no text")));
  const answers = choices
    .list("answers")
    .map((answer) => (isWhole(answer) ? answer : refused("an answer is no number")));
  if (answers.length % STRIDE !== 0) refused("its last choice is not whole");
  if (countOf({ kinds, answers }) !== choices.whole("count", 0)) refused("some of its choices are missing");
  for (let n = 0; n < answers.length; n += STRIDE)
    if (answers[n]! >= kinds.length || answers[n + 2]! >= answers[n + 1]!)
      refused(`choice ${n / STRIDE} is none`);
  return { kinds, answers };
}

/** An object whose fields have to be there, each of its kind. */
export class Fields {
  private readonly fields: Readonly<Record<string, unknown>>;
  private readonly name: string;
  private readonly refused: Refused;

  constructor(value: unknown, name: string, refused: Refused) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) refused(`${name} is no object`);
    this.fields = value as Record<string, unknown>;
    this.name = name;
    this.refused = refused;
  }

  flag(field: string): boolean {
    const value = this.fields[field];
    return typeof value === "boolean"
      ? value
      : this.refused(`${this.name}: ${field} is neither true nor false`);
  }

  object(field: string): Fields {
    return new Fields(this.fields[field], field, this.refused);
  }

  list(field: string): readonly unknown[] {
    const value = this.fields[field];
    return Array.isArray(value) ? value : this.wrong(field, "list");
  }

  text(field: string): string {
    const value = this.fields[field];
    return typeof value === "string" ? value : this.wrong(field, "text");
  }

  textOrNull(field: string): string | null {
    return this.fields[field] === null ? null : this.text(field);
  }

  /** One of `known`. */
  oneOf<T extends string>(field: string, known: readonly T[]): T {
    const value = this.text(field);
    return known.find((each) => each === value) ?? this.wrong(field, `text of ${known.join(", ")}`);
  }

  whole(field: string, least: number, most = Number.MAX_SAFE_INTEGER): number {
    const value = this.fields[field];
    if (isWhole(value) && value >= least && value <= most) return value;
    const to = most === Number.MAX_SAFE_INTEGER ? "up" : `to ${most}`;
    return this.wrong(field, `whole number from ${least} ${to}`);
  }

  private wrong(field: string, kind: string): never {
    return this.refused(`${this.name} has no ${field} that is a ${kind}`);
  }
}

function isWhole(value: unknown): value is number {
  return typeof value === "number" && Number.isSafeInteger(value) && value >= 0;
}
