// One way through the system of a site that is rewritten, in a file. JSON, one document.

import { refuse } from "./base/refuse.ts";
import type { Choices } from "./explore/chooser.ts";
import { MAX_VCPUS, POKE_WAYS, type PokeSettings } from "./explore/settings.ts";
import { WRITERS, type Writer } from "./ftrace/textPoke.ts";
import { counted, readChoices, readDocument } from "./record.ts";

export interface PokeRecord {
  readonly settings: PokeSettings;
  /** Of the machine before the first step: a record is of one kernel, to the byte. */
  readonly origin: string;
  readonly choices: Choices;
  readonly end: PokeEnd;
}

export interface PokeEnd {
  readonly steps: number;
  readonly finding: string | null;
  /** Of everything in the machine (Machine.hash), in hexadecimal. */
  readonly hash: string;
}

const FORMAT = "fentrylab poke 1";

export function writePokeRecord(record: PokeRecord): string {
  return `${JSON.stringify({ format: FORMAT, ...record, choices: counted(record.choices) })}\n`;
}

/** Refuses what `writePokeRecord` has not written. */
export function readPokeRecord(path: string): PokeRecord {
  const refused = (what: string) => refuse("poke-record", { file: path, what });
  const top = readDocument(path, FORMAT, refused);
  const settings = top.object("settings");
  const end = top.object("end");
  return {
    settings: {
      vcpus: settings.whole("vcpus", 1, MAX_VCPUS),
      calls: settings.whole("calls", 1),
      way: settings.oneOf("way", POKE_WAYS),
      writer: settings.oneOf("writer", Object.keys(WRITERS) as Writer[]),
    },
    origin: top.text("origin"),
    choices: readChoices(top.object("choices"), refused),
    end: {
      steps: end.whole("steps", 0),
      finding: end.textOrNull("finding"),
      hash: end.text("hash"),
    },
  };
}
