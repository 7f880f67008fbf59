// A difference for people: the case as a line of test/cases, made small, with what the processor and what the engine did.

import { Code, Formatter, FormatterSyntax, InstructionInfoFactory, RegisterExt } from "iced-x86";
import { hexBytes } from "../../src/base/bytes.ts";
import { decodeOutcomes } from "../native/records.ts";
import { type Engine, regionEngine, steppedEngine } from "../x86/cases-engine.ts";
import { decodeAll } from "../x86/cases-flags.ts";
import {
  bytesOf,
  type Case,
  DATA,
  DATA_SIZE,
  FLAG_MASK,
  FLAG_NAMES,
  FLAGS,
  type Outcome,
  type Program,
  REGISTERS,
  type Registers,
} from "../x86/cases-model.ts";
import { formatAfter, formatValue, wordsOf } from "../x86/cases-text.ts";
import { differences, settle } from "../x86/cases-verdict.ts";
import { Batch, FRAME_INDEX, FRAME_RFLAGS } from "./batch.ts";
import { faultOf } from "./bulkEngine.ts";
import type { EngineKind } from "./bulkMachine.ts";
import type { FuzzCode } from "./code.ts";
import { halves, whole } from "./halves.ts";
import type { Reference } from "./reference.ts";

export interface Difference {
  readonly number: number;
  readonly engine: EngineKind;
  readonly code: FuzzCode;
  readonly program: Program;
}

/** Case `n` of the batch, as an oracle takes it. */
export function programOf(batch: Batch, n: number): Program {
  const { words } = batch;
  const frame = batch.starts[n]! + 2;
  const word = (at: number) => whole({ low: words[at]!, high: words[at + 1]! });
  const registers = Object.fromEntries(
    REGISTERS.map((name, r) => [name, word(frame + 2 * FRAME_INDEX[r]!)]),
  ) as Record<(typeof REGISTERS)[number], bigint>;
  const bytes = new Map<number, number>();
  const patches = batch.patchStart(n);
  for (let p = patches; p < patches + batch.patchCount(n); p++) bytes.set(words[p]! >>> 8, words[p]! & 0xff);
  const none = { registers, rflags: 0, memory: [] };
  return {
    bytes: batch.codes[n]!.bytes,
    before: {
      registers,
      rflags: words[frame + 2 * FRAME_RFLAGS]! & FLAG_MASK,
      memory: wordsOf(none, new Map([...bytes].sort(([a], [b]) => a - b))),
    },
  };
}

/** The program as a case of a batch, the only one. */
function batchOf(code: FuzzCode, { before }: Program): Batch {
  const registers = new Int32Array(32);
  for (const [r, name] of REGISTERS.entries()) {
    const { low, high } = halves(before.registers[name]);
    registers[2 * r] = low;
    registers[2 * r + 1] = high;
  }
  const patches = Int32Array.from(bytesOf(before.memory), ([offset, byte]) => (offset << 8) | byte);
  const batch = new Batch(1);
  const state = { registers, flags: before.rflags, patches, patchCount: patches.length, writesCode: true };
  batch.add(0, code, state);
  return batch;
}

const ENGINES: Readonly<Record<EngineKind, () => Engine>> = { stepped: steppedEngine, regions: regionEngine };

/**
 * The case's line, without what does not matter to the difference, and a line for all that differs. `engine` makes a
 * fresh engine; this one's own of that kind if it is not given.
 */
export async function describeDifference(
  { program, code, engine: kind }: Difference,
  reference: Reference,
  engine: () => Engine = ENGINES[kind],
): Promise<string[]> {
  if (code.count === 1) {
    const smaller = await judge(reduce(program), code, reference, engine);
    if (smaller !== undefined) return smaller;
  }
  const found = await judge(program, code, reference, engine);
  return found ?? [formatCase(program, null, 0), "  differs only after the cases before it"];
}

/** Of what differs: the registers and flags come first, then memory byte by byte. */
const LINES = 12;

async function judge(
  program: Program,
  code: FuzzCode,
  { oracle, strict }: Reference,
  engine: () => Engine,
): Promise<string[] | undefined> {
  const { words } = await oracle.run(batchOf(code, program));
  const bytes = new Uint8Array(words.buffer, words.byteOffset, 4 * words.length);
  const [theirs] = decodeOutcomes([program], bytes);
  if (theirs === undefined) return undefined;
  if (theirs.fault === "hang") return [formatCase(program, null, 0), "  never ends there"];
  const cl = Number(program.before.registers.rcx & 0xffn);
  const unknown = strict ? 0 : code.undefinedFlags(cl, faultOf(code, words, 0));
  let outcome: Outcome;
  try {
    outcome = engine()(program);
  } catch (error) {
    return [formatCase(program, theirs, unknown), `  ${error instanceof Error ? error.message : error}`];
  }
  const theCase: Case = {
    ...program,
    ...{ name: "fuzz", file: "fuzz", line: 1, text: "" },
    after: settle(program, theirs, unknown),
  };
  const found = differences(theCase, outcome);
  if (found.length === 0) return undefined;
  const left = found.length > LINES ? [`  and ${found.length - LINES} more`] : [];
  const lines = found.slice(0, LINES).map((line) => `  ${line}`);
  return [formatCase(program, theirs, unknown), ...lines, ...left];
}

/** What a register holds that a case line does not name (test/cases/README.md). */
function unnamed(register: number): bigint {
  return REGISTERS[register] === "rsp"
    ? BigInt(DATA + DATA_SIZE / 2)
    : 0x5a5a_5a5a_5a5a_5a50n + BigInt(register);
}

/** Without the registers that the instruction does not use, and without flags that it does not read. */
function reduce(program: Program): Program {
  const used = usedBy(program.bytes);
  const registers = Object.fromEntries(
    REGISTERS.map((name, r) => [name, used.has(r) ? program.before.registers[name] : unnamed(r)]),
  ) as Registers;
  return { ...program, before: { ...program.before, registers } };
}

function usedBy(bytes: Uint8Array): Set<number> {
  const [instruction] = decodeAll(bytes);
  const factory = new InstructionInfoFactory();
  const info = factory.info(instruction!);
  const used = new Set(
    info.usedRegisters().map(({ register }) => RegisterExt.number(RegisterExt.fullRegister(register))),
  );
  for (const object of [info, factory, instruction!]) object.free();
  return used;
}

/** The line: `bytes | text | before => after`. Without `native`, without an after. */
function formatCase(program: Program, native: Outcome | null, unknown: number): string {
  const instructions = decodeAll(program.bytes);
  const formatter = new Formatter(FormatterSyntax.Gas);
  const text = instructions.map((instruction) => formatter.format(instruction)).join(" ; ");
  const encoding = instructions.map(({ code }) => Code[code]).join(" ");
  for (const object of [...instructions, formatter]) object.free();
  const { registers, rflags, memory } = program.before;
  const before = [
    ...REGISTERS.flatMap((name, r) =>
      registers[name] === unnamed(r) ? [] : [`${name}=${formatValue(registers[name])}`],
    ),
    ...FLAG_NAMES.flatMap((name) => (rflags & FLAGS[name] ? [`${name}=1`] : [])),
    ...memory.map(({ at, size, value }) => `[${formatValue(BigInt(at))}]=0x${value.toString(16)}:${size}`),
  ].join(" ");
  const head = `${hexBytes(program.bytes)} | ${text} | ${before}`;
  if (native === null || native.fault === "hang") return head;
  const after = formatAfter(program, settle(program, native, unknown), 0);
  return `${head} => ${after} ; ${encoding}`;
}
