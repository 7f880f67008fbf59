// A difference for people: the case as a line of test/cases, made small, with what the processor and what the engine did.

import {
  Code,
  Decoder,
  DecoderOptions,
  Formatter,
  FormatterSyntax,
  Instruction,
  InstructionInfoFactory,
  RegisterExt,
} from "iced-x86";
import { hexBytes } from "../../src/base/bytes.ts";
import { runNative } from "../native/oracle.ts";
import { type Engine, regionEngine, steppedEngine } from "../x86/cases-engine.ts";
import { flagEffect } from "../x86/cases-flags.ts";
import {
  type Case,
  CODE,
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
import { type Batch, FRAME_INDEX, FRAME_RFLAGS } from "./batch.ts";
import type { EngineKind } from "./bulkEngine.ts";

export interface Difference {
  readonly number: number;
  readonly engine: EngineKind;
  readonly program: Program;
}

/** Case `n` of the batch, as an oracle takes it. */
export function programOf(batch: Batch, n: number): Program {
  const { words } = batch;
  const frame = batch.starts[n]! + 2;
  const word = (at: number) => (BigInt(words[at + 1]! >>> 0) << 32n) | BigInt(words[at]! >>> 0);
  const registers = Object.fromEntries(
    REGISTERS.map((name, r) => [name, word(frame + 2 * FRAME_INDEX[r]!)]),
  ) as Record<(typeof REGISTERS)[number], bigint>;
  const bytes = new Map<number, number>();
  const patches = batch.patchStart(n);
  for (let p = patches; p < patches + batch.patchCount(n); p++) bytes.set(words[p]! >>> 8, words[p]! & 0xff);
  const none = { registers, rflags: 0, memory: [] };
  return {
    bytes: batch.instructions[n]!.bytes,
    before: {
      registers,
      rflags: words[frame + 2 * FRAME_RFLAGS]! & FLAG_MASK,
      memory: wordsOf(none, new Map([...bytes].sort(([a], [b]) => a - b))),
    },
  };
}

const ENGINES: Readonly<Record<EngineKind, () => Engine>> = { stepped: steppedEngine, regions: regionEngine };

/**
 * The case's line, without what does not matter to the difference, and a line for all that differs. `engine` makes a
 * fresh engine; this one's own of that kind if it is not given.
 */
export async function describeDifference(
  { program, engine: kind }: Difference,
  engine: () => Engine = ENGINES[kind],
): Promise<string[]> {
  const smaller = await judge(reduce(program), engine);
  if (smaller !== undefined) return smaller;
  const whole = await judge(program, engine);
  return whole ?? [formatCase(program, null, 0), "  differs only after the cases before it"];
}

/** Of what differs: the registers and flags come first, then memory byte by byte. */
const LINES = 12;

async function judge(program: Program, engine: () => Engine): Promise<string[] | undefined> {
  const [native] = await runNative([program]);
  if (native === undefined) return undefined;
  if (native.fault === "hang") return [formatCase(program, null, 0), "  never ends on the processor"];
  const effect = flagEffect(program, native.fault !== null);
  let outcome: Outcome;
  try {
    outcome = engine()(program);
  } catch (error) {
    return [
      formatCase(program, native, effect.undefined),
      `  ${error instanceof Error ? error.message : error}`,
    ];
  }
  const theCase: Case = {
    ...program,
    ...{ name: "fuzz", file: "fuzz", line: 1, text: "" },
    after: settle(program, native, effect.undefined),
  };
  const found = differences(theCase, outcome);
  if (found.length === 0) return undefined;
  const left = found.length > LINES ? [`  and ${found.length - LINES} more`] : [];
  const lines = found.slice(0, LINES).map((line) => `  ${line}`);
  return [formatCase(program, native, effect.undefined), ...lines, ...left];
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
  const instruction = decodeOne(bytes);
  const factory = new InstructionInfoFactory();
  const info = factory.info(instruction);
  const used = new Set(
    info.usedRegisters().map(({ register }) => RegisterExt.number(RegisterExt.fullRegister(register))),
  );
  for (const object of [info, factory, instruction]) object.free();
  return used;
}

function decodeOne(bytes: Uint8Array): Instruction {
  const decoder = new Decoder(64, bytes, DecoderOptions.None);
  decoder.ip = BigInt(CODE);
  const instruction = new Instruction();
  decoder.decodeOut(instruction);
  decoder.free();
  return instruction;
}

/** The line: `bytes | text | before => after`. Without `native`, without an after. */
function formatCase(program: Program, native: Outcome | null, unknown: number): string {
  const instruction = decodeOne(program.bytes);
  const formatter = new Formatter(FormatterSyntax.Gas);
  const text = formatter.format(instruction);
  const encoding = Code[instruction.code]!;
  formatter.free();
  instruction.free();
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
