// Native Unicorn with the cases of a batch, one instruction after the other, in memory that it shares with us.
//
// It does not say which address a page fault is at, nor which of several exceptions an exception was.

import { addr, PAGE_SIZE } from "../../src/base/addr.ts";
import { PAGE_FAULT } from "../../src/machine/exit.ts";
import type { Missing } from "../../src/reference/reference.ts";
import {
  loadUnicorn,
  type NativeMemory,
  PROT,
  type UnicornCode,
  type UnicornContext,
  type UnicornEngine,
} from "../../src/reference/unicornLibrary.ts";
import { CODE, CODE_PAGE, DATA, DATA_SIZE, FILL, FS_BASE, GS_BASE } from "../x86/cases-model.ts";
import { type Batch, FRAME_INDEX, FRAME_RFLAGS, FRAME_RIP } from "./batch.ts";
import type { FuzzCode } from "./code.ts";
import { type Halves, isCanonical } from "./halves.ts";
import {
  ADDRESS_UNKNOWN,
  BREAKPOINT,
  type Oracle,
  OUTCOME,
  type Outcomes,
  PAGE_FAULT_VECTOR,
  SIGVTALRM,
  SOME_EXCEPTION,
  VECTORS,
} from "./outcomes.ts";
import { OutcomeWriter } from "./outcomeWriter.ts";

const LIMIT = 20_000;
const INT3 = 0xcc;
const RIP = 16;
const RFLAGS = 17;
const BASE = BigInt(CODE);
/** Where it goes if it is told to. */
const NOWHERE = "UC_ERR_FETCH_UNMAPPED";

interface Left {
  /** Sixteen registers, rip and rflags; the next call overwrites them. */
  readonly halves: Int32Array;
  /** The instruction that it could not execute, or the int3 that it came to. */
  readonly ip: Halves;
  readonly stop: UnicornCode | "int3" | "hang";
}

/** What `uc_err` means, where it is not some exception: a vector, and a page fault's error code. */
const FAULTS: Readonly<Partial<Record<UnicornCode, readonly [number, number]>>> = {
  UC_ERR_READ_UNMAPPED: [PAGE_FAULT_VECTOR, 0],
  UC_ERR_WRITE_UNMAPPED: [PAGE_FAULT_VECTOR, PAGE_FAULT.write],
  UC_ERR_FETCH_UNMAPPED: [PAGE_FAULT_VECTOR, PAGE_FAULT.fetch],
  UC_ERR_FETCH_PROT: [PAGE_FAULT_VECTOR, PAGE_FAULT.fetch],
  UC_ERR_INSN_INVALID: [VECTORS["#UD"]!, 0],
};

export class UnicornOracle implements Oracle {
  private readonly engine: UnicornEngine;
  private readonly fresh: UnicornContext;
  private readonly data: NativeMemory;
  private readonly code: NativeMemory;
  private readonly expected = new Uint8Array(DATA_SIZE).fill(FILL);
  private readonly before = new BigInt64Array(18);
  private readonly halves = new Int32Array(this.before.buffer);
  private current: FuzzCode | undefined;

  private constructor(engine: UnicornEngine) {
    this.engine = engine;
    this.data = engine.allocate(DATA_SIZE);
    this.code = engine.allocate(PAGE_SIZE);
    this.data.bytes.fill(FILL);
    this.code.bytes.fill(INT3);
    engine.mapNative(addr(DATA), this.data, 0, DATA_SIZE, PROT.READ + PROT.WRITE);
    engine.mapNative(addr(CODE_PAGE), this.code, 0, PAGE_SIZE, PROT.ALL);
    engine.writeBase("gs", BigInt(GS_BASE));
    engine.writeBase("fs", BigInt(FS_BASE));
    this.fresh = engine.saveContext();
  }

  /** The oracle, or why there is none here. */
  static async open(): Promise<UnicornOracle | Missing> {
    const unicorn = await loadUnicorn();
    return "missing" in unicorn ? unicorn : new UnicornOracle(unicorn.open());
  }

  run(batch: Batch): Promise<Outcomes> {
    const writer = new OutcomeWriter(batch.count);
    for (let n = 0; n < batch.count; n++) this.runOne(batch, n, writer);
    return Promise.resolve(writer.outcomes());
  }

  close(): void {
    this.engine.close();
  }

  private runOne(batch: Batch, n: number, writer: OutcomeWriter): void {
    const code = batch.codes[n]!;
    if (code !== this.current) this.place(code);
    this.load(batch, n);
    const at = writer.begin();
    const { words } = writer;
    const { halves, ip, stop } = this.execute(code);
    for (let r = 0; r < 16; r++) {
      words[at + 2 * FRAME_INDEX[r]!] = halves[2 * r]!;
      words[at + 2 * FRAME_INDEX[r]! + 1] = halves[2 * r + 1]!;
    }
    words[at + 2 * FRAME_RFLAGS] = halves[2 * RFLAGS]!;
    // An int3 that was not executed counts as one that was.
    words[at + 2 * FRAME_RIP] = stop === "int3" ? ip.low + 1 : ip.low;
    words[at + 2 * FRAME_RIP + 1] = ip.high;
    if (stop === "int3") words[at + OUTCOME.vector] = BREAKPOINT;
    else if (stop === "hang") words[at + OUTCOME.signal] = SIGVTALRM;
    else {
      const [vector, error] = FAULTS[stop] ?? [SOME_EXCEPTION, 0];
      words[at + OUTCOME.vector] = vector;
      words[at + OUTCOME.error] = error | ADDRESS_UNKNOWN;
    }
    this.noteChanges(writer);
    this.restore(batch, n, writer.changes());
    writer.end();
  }

  private place(code: FuzzCode): void {
    const { bytes } = this.code;
    bytes.fill(INT3);
    bytes.set(code.bytes, CODE - CODE_PAGE);
    this.engine.forget(addr(CODE_PAGE), PAGE_SIZE);
    this.current = code;
  }

  private load(batch: Batch, n: number): void {
    const { words } = batch;
    const { halves, before } = this;
    const start = batch.starts[n]! + 2;
    for (let r = 0; r < 16; r++) {
      halves[2 * r] = words[start + 2 * FRAME_INDEX[r]!]!;
      halves[2 * r + 1] = words[start + 2 * FRAME_INDEX[r]! + 1]!;
    }
    before[RIP] = BASE;
    before[RFLAGS] = BigInt(words[start + 2 * FRAME_RFLAGS]!);
    this.engine.writeState(before);
    const patches = batch.patchStart(n);
    for (let p = patches, end = patches + batch.patchCount(n); p < end; p++)
      this.data.bytes[words[p]! >>> 8] = this.expected[words[p]! >>> 8] = words[p]! & 0xff;
  }

  /** Until it comes to an int3 that is not its own, or does not get on. */
  private execute({ bytes }: FuzzCode): Left {
    const { engine } = this;
    const ip: Halves = { low: CODE, high: 0 };
    for (let n = 0; n < LIMIT; n++) {
      const stop = isCanonical(ip) ? engine.step(addr(ip.high * 2 ** 32 + (ip.low >>> 0))) : NOWHERE;
      const { halves } = engine.readState();
      if (stop !== "UC_ERR_OK") {
        engine.restoreContext(this.fresh); // or an exception would still be pending
        // A branch has been executed by then, and so has an int3.
        if (stop.startsWith("UC_ERR_FETCH") || stop === "UC_ERR_EXCEPTION") {
          ip.low = halves[2 * RIP]!;
          ip.high = halves[2 * RIP + 1]!;
        }
        return { halves, ip, stop };
      }
      ip.low = halves[2 * RIP]!;
      ip.high = halves[2 * RIP + 1]!;
      const inPage = ip.high === 0 && ip.low >>> 12 === CODE_PAGE >>> 12;
      if (inPage && !(ip.low >= CODE && ip.low < CODE + bytes.length)) return { halves, ip, stop: "int3" };
    }
    return { halves: engine.readState().halves, ip, stop: "hang" };
  }

  private noteChanges(writer: OutcomeWriter): void {
    const { data, expected } = this;
    if (Buffer.compare(data.bytes, expected) === 0) return;
    for (let offset = 0; offset < DATA_SIZE; offset++)
      if (data.bytes[offset] !== expected[offset]) writer.addChange(offset, data.bytes[offset]!);
  }

  private restore(batch: Batch, n: number, changes: Int32Array): void {
    const { data, expected } = this;
    for (const change of changes) data.bytes[change >>> 8] = expected[change >>> 8] = FILL;
    const patches = batch.patchStart(n);
    for (let p = patches, end = patches + batch.patchCount(n); p < end; p++)
      data.bytes[batch.words[p]! >>> 8] = expected[batch.words[p]! >>> 8] = FILL;
    if (batch.writesCode[n] !== 0) this.current = undefined;
  }
}
