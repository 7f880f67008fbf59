// What snapshots do to memory by the line of 64 bytes, in WebAssembly: compare, copy, hash.
//
// They work on a list of pages in host memory whose saved content lies elsewhere (machine/tracker.ts), one
// call for the whole list, because a call costs as much as comparing a quarter of a page.
//
// Hashes are sums: each line contributes a mix of its place and its bytes, so that a sum is kept up to date by
// what changed, and does not depend on the order in which it did.

import { FunctionBuilder, type Local } from "../wasm/function.ts";
import { ModuleBuilder } from "../wasm/module.ts";
import { BETWEEN_RUNS, EMPTY_PAGE, STATE, X_MASK } from "../x86/state.ts";
import type { Host, HostAddress } from "./host.ts";

export const LINE_SIZE = 64;
export const LINES_PER_PAGE = 64;

/** How many comparisons without a change one with a change makes up for. */
const WORTH = 3;

/** An entry of the list. */
export const ENTRY = {
  /** Host addresses of the page and of what is saved of it. */
  live: 0,
  saved: 4,
  /** A bit for each line that differs, as `diff` found it. */
  changed: 8,
  /** What the page's place is to hashes. */
  key: 16,
  /** A bit for each line that hashes count. */
  hashed: 24,
  /** How many bytes of it are compared, whole lines. */
  bytes: 32,
  /** How often it was compared and nothing had changed, of late: a change makes up for some of that. */
  idle: 36,
  size: 40,
} as const;

/** What `gather` writes of a line: host addresses of both versions, and 32 bits of a hash of each. */
export const GATHERED = { live: 0, saved: 4, liveHash: 8, savedHash: 12, size: 16 } as const;

/** Lists are given as the host addresses of their first entry and of the end. */
export interface LineKernels {
  /** Gives vCPUs' states the one form that their registers and flags have between runs. */
  park(list: HostAddress, end: HostAddress): void;
  /** Finds the lines that differ. */
  diff(list: HostAddress, end: HostAddress): void;
  /** Makes the lines that differ what is saved of them; returns the highest `idle`, to which it adds `compared`. */
  undo(list: HostAddress, end: HostAddress, compared: number): number;
  /** Saves the lines that differ; the same otherwise. */
  commit(list: HostAddress, end: HostAddress, compared: number): number;
  /** Writes a record for each line that differs to `out`; returns where they end. */
  gather(list: HostAddress, end: HostAddress, out: HostAddress): HostAddress;
  /** What the lines that differ add to the hash. */
  hashChange(list: HostAddress, end: HostAddress): bigint;
  /** What the lines in the bit set `lines` of a page add to the hash. */
  hashPage(page: HostAddress, key: number, lines: bigint): bigint;
  /** What a mapped page adds to the hash besides its content: all three are integers. */
  hashMapping(page: number, first: number, access: number): bigint;
}

let compiled: WebAssembly.Module | undefined;

export function makeLineKernels(host: Host): LineKernels {
  compiled ??= new WebAssembly.Module(kernelModule());
  const { exports } = new WebAssembly.Instance(compiled, { host: { memory: host.memory } });
  return exports as unknown as LineKernels;
}

function kernelModule(): Uint8Array<ArrayBuffer> {
  const module = new ModuleBuilder();
  module.importMemory("host", "memory", { minimum: 1 });
  const add = (name: string, f: FunctionBuilder, emit: (f: FunctionBuilder) => void): number => {
    emit(f);
    return module.function(f, name);
  };
  const overList = () => new FunctionBuilder({ params: ["i32", "i32"], results: [] });
  const settling = () => new FunctionBuilder({ params: ["i32", "i32", "i32"], results: ["i32"] });

  const hashLine = add(
    "hashLine",
    new FunctionBuilder({ params: ["i32", "i64"], results: ["i64"] }),
    emitHashLine,
  );
  add("park", overList(), (f) => emitEachEntry(f, (entry) => emitPark(f, entry)));
  add("diff", overList(), (f) => emitEachEntry(f, (entry) => emitDiff(f, entry)));
  add("undo", settling(), (f) => emitSettle(f, ({ live, saved }) => emitCopyLine(f, live, saved)));
  add("commit", settling(), (f) => emitSettle(f, ({ live, saved }) => emitCopyLine(f, saved, live)));
  add("gather", new FunctionBuilder({ params: ["i32", "i32", "i32"], results: ["i32"] }), (f) =>
    emitGather(f, hashLine),
  );
  add("hashChange", new FunctionBuilder({ params: ["i32", "i32"], results: ["i64"] }), (f) =>
    emitHashChange(f, hashLine),
  );
  add("hashPage", new FunctionBuilder({ params: ["i32", "f64", "i64"], results: ["i64"] }), (f) =>
    emitHashPage(f, hashLine),
  );
  add(
    "hashMapping",
    new FunctionBuilder({ params: ["f64", "f64", "i32"], results: ["i64"] }),
    emitHashMapping,
  );
  return module.encode();
}

interface Line {
  readonly live: Local;
  readonly saved: Local;
  /** Offset in the page. */
  readonly at: Local;
}

/** Emits a loop over the list (parameters 0 and 1). */
function emitEachEntry(f: FunctionBuilder, visit: (entry: Local) => void): void {
  const entry = f.param(0);
  const done = f.block();
  const next = f.loop();
  f.get(entry).get(f.param(1)).op("i32.ge_u").brIf(done);
  visit(entry);
  f.get(entry).i32(ENTRY.size).op("i32.add").set(entry);
  f.br(next).end().end();
}

/** Emits a loop over the lines of an entry whose bits are set in `bits`, which it clears. */
function emitEachLine(f: FunctionBuilder, entry: Local, bits: Local, visit: (line: Line) => void): void {
  const line: Line = { live: f.local("i32"), saved: f.local("i32"), at: f.local("i32") };
  const done = f.block();
  const next = f.loop();
  f.get(bits).op("i64.eqz").brIf(done);
  f.get(bits).op("i64.ctz").op("i32.wrap_i64").i32(6).op("i32.shl").set(line.at);
  f.get(bits).get(bits).i64(1).op("i64.sub").op("i64.and").set(bits);
  f.get(entry).load("i32.load", ENTRY.live).get(line.at).op("i32.add").set(line.live);
  f.get(entry).load("i32.load", ENTRY.saved).get(line.at).op("i32.add").set(line.saved);
  visit(line);
  f.br(next).end().end();
}

/** Over all entries: does `copy` to the lines that differ, after which none does. */
function emitSettle(f: FunctionBuilder, copy: (line: Line) => void): void {
  const [bits, idle, longest] = [f.local("i64"), f.local("i32"), f.local("i32")];
  emitEachEntry(f, (entry) => {
    f.get(entry).load("i64.load", ENTRY.changed).tee(bits).op("i64.eqz").if();
    f.get(entry).get(entry).load("i32.load", ENTRY.idle).get(f.param(2)).op("i32.add").tee(idle);
    f.store("i32.store", ENTRY.idle);
    f.get(idle).get(longest).op("i32.gt_u").if();
    f.get(idle).set(longest).end();
    f.else();
    emitEachLine(f, entry, bits, copy);
    f.get(entry).i64(0).store("i64.store", ENTRY.changed);
    f.get(entry).load("i32.load", ENTRY.idle).i32(WORTH).op("i32.sub").tee(idle).i32(0).op("i32.gt_s").if();
    f.get(entry).get(idle).store("i32.store", ENTRY.idle);
    f.else();
    f.get(entry).i32(0).store("i32.store", ENTRY.idle).end();
    f.end();
  });
  f.get(longest);
}

function emitCopyLine(f: FunctionBuilder, to: Local, from: Local): void {
  for (let at = 0; at < LINE_SIZE; at += 16) f.get(to).get(from).vectorLoad(at).vectorStore(at);
}

function emitDiff(f: FunctionBuilder, entry: Local): void {
  const [live, saved, end] = [f.local("i32"), f.local("i32"), f.local("i32")];
  const [changed, bit] = [f.local("i64"), f.local("i64")];
  f.get(entry).load("i32.load", ENTRY.live).tee(live);
  f.get(entry).load("i32.load", ENTRY.bytes).op("i32.add").set(end);
  f.get(entry).load("i32.load", ENTRY.saved).set(saved);
  f.i64(0).set(changed).i64(1).set(bit);
  const next = f.loop();
  emitDiffers(f, live, saved);
  f.if();
  f.get(changed).get(bit).op("i64.or").set(changed).end();
  f.get(bit).i64(1).op("i64.shl").set(bit);
  for (const page of [live, saved]) f.get(page).i32(LINE_SIZE).op("i32.add").set(page);
  f.get(live).get(end).op("i32.lt_u").brIf(next).end();
  f.get(entry).get(changed).store("i64.store", ENTRY.changed);
}

/** Leaves whether two lines differ, as an i32. */
function emitDiffers(f: FunctionBuilder, live: Local, saved: Local): void {
  for (let at = 0; at < LINE_SIZE; at += 16) {
    f.get(live).vectorLoad(at).get(saved).vectorLoad(at).vector("v128.xor");
    if (at > 0) f.vector("v128.or");
  }
  f.vector("v128.any_true");
}

function emitGather(f: FunctionBuilder, hashLine: number): void {
  const out = f.param(2);
  const bits = f.local("i64");
  emitEachEntry(f, (entry) => {
    f.get(entry).load("i64.load", ENTRY.changed).set(bits);
    emitEachLine(f, entry, bits, ({ live, saved }) => {
      for (const [version, address, hash] of [
        [live, GATHERED.live, GATHERED.liveHash],
        [saved, GATHERED.saved, GATHERED.savedHash],
      ] as const) {
        f.get(out).get(version).store("i32.store", address);
        f.get(out).get(version).i64(0).call(hashLine).op("i32.wrap_i64").store("i32.store", hash);
      }
      f.get(out).i32(GATHERED.size).op("i32.add").set(out);
    });
  });
  f.get(out);
}

function emitHashChange(f: FunctionBuilder, hashLine: number): void {
  const [sum, place, bits] = [f.local("i64"), f.local("i64"), f.local("i64")];
  emitEachEntry(f, (entry) => {
    f.get(entry).load("i64.load", ENTRY.changed);
    f.get(entry).load("i64.load", ENTRY.hashed).op("i64.and").set(bits);
    emitEachLine(f, entry, bits, ({ live, saved, at }) => {
      f.get(entry).load("i64.load", ENTRY.key).get(at).op("i64.extend_i32_u").op("i64.add").set(place);
      f.get(sum).get(live).get(place).call(hashLine).op("i64.add");
      f.get(saved).get(place).call(hashLine).op("i64.sub").set(sum);
    });
  });
  f.get(sum);
}

function emitHashPage(f: FunctionBuilder, hashLine: number): void {
  const [page, key, lines] = [f.param(0), f.param(1), f.param(2)];
  const [sum, place] = [f.local("i64"), f.local("i64")];
  f.get(key).op("i64.trunc_f64_s").set(place);
  const done = f.block();
  const next = f.loop();
  f.get(lines).op("i64.eqz").brIf(done);
  f.get(lines).i64(1).op("i64.and").op("i32.wrap_i64").if();
  f.get(sum).get(page).get(place).call(hashLine).op("i64.add").set(sum);
  f.end();
  f.get(page).i32(LINE_SIZE).op("i32.add").set(page);
  f.get(place).i64(LINE_SIZE).op("i64.add").set(place);
  f.get(lines).i64(1).op("i64.shr_u").set(lines);
  f.br(next).end().end();
  f.get(sum);
}

// Odd 64-bit constants with about half their bits set: the golden ratio, and primes as they are often used.
const MIX = [0x9e3779b97f4a7c15n, 0xbf58476d1ce4e5b9n, 0x94d049bb133111ebn, 0xd6e8feb86659fd93n] as const;

/** `value = (value ^ value >>> shift) * factor`: no two values become the same. */
function emitMix(f: FunctionBuilder, value: Local, shift: number, factor: bigint): void {
  f.get(value).get(value).i64(shift).op("i64.shr_u").op("i64.xor").i64(factor).op("i64.mul").set(value);
}

function emitFinalMix(f: FunctionBuilder, value: Local): void {
  emitMix(f, value, 30, MIX[1]);
  emitMix(f, value, 27, MIX[2]);
  f.get(value).get(value).i64(31).op("i64.shr_u").op("i64.xor");
}

/** (line, place) -> hash. Two lanes, because a multiplication takes several cycles. */
function emitHashLine(f: FunctionBuilder): void {
  const [line, place] = [f.param(0), f.param(1)];
  const lanes = [f.local("i64"), f.local("i64")] as const;
  f.get(place).i64(MIX[0]).op("i64.mul").set(lanes[0]);
  f.get(place).i64(MIX[3]).op("i64.xor").set(lanes[1]);
  for (let at = 0; at < LINE_SIZE; at += 16) {
    lanes.forEach((lane, n) => {
      f.get(lane)
        .get(line)
        .load("i64.load", at + 8 * n)
        .op("i64.xor")
        .set(lane);
      emitMix(f, lane, 32, MIX[n + 2]!);
    });
  }
  f.get(lanes[1]).i64(29).op("i64.rotl").i64(MIX[0]).op("i64.mul").get(lanes[0]).op("i64.add").set(lanes[0]);
  emitFinalMix(f, lanes[0]);
}

function emitHashMapping(f: FunctionBuilder): void {
  const hash = f.local("i64");
  f.get(f.param(0)).op("i64.trunc_f64_s").i64(MIX[3]).op("i64.xor").set(hash);
  emitMix(f, hash, 32, MIX[1]);
  f.get(hash).get(f.param(1)).op("i64.trunc_f64_s").op("i64.xor").set(hash);
  emitMix(f, hash, 32, MIX[2]);
  f.get(hash).get(f.param(2)).op("i64.extend_i32_u").op("i64.xor").set(hash);
  emitMix(f, hash, 32, MIX[0]);
  emitFinalMix(f, hash);
}

/** Flags get the words that POPF gives them, whatever the arithmetic was that they came from (machine/flags.ts). */
function emitPark(f: FunctionBuilder, entry: Local): void {
  const cpu = f.local("i32");
  f.get(entry).load("i32.load", ENTRY.live).set(cpu);
  const [result, x, differing, low] = [f.local("i64"), f.local("i64"), f.local("i64"), f.local("i64")];
  f.get(cpu).load("i64.load", STATE.result).set(result);
  f.get(cpu).load("i64.load", STATE.x).set(x);
  f.get(result).get(x).op("i64.xor").set(differing);
  f.get(result).get(x).i64(8).op("i64.shr_u").op("i64.xor").i64(0xff).op("i64.and").set(low);
  f.get(cpu);
  f.get(differing).i64(X_MASK).op("i64.and");
  // PF ^ ZF, at bit 8.
  f.get(low).op("i64.popcnt").i64(1).op("i64.add").i64(1).op("i64.and");
  f.get(result).op("i64.eqz").op("i64.extend_i32_u").op("i64.xor").i64(8).op("i64.shl").op("i64.or");
  // SF, at bit 62.
  f.get(result)
    .i64(1)
    .op("i64.shr_u")
    .get(x)
    .op("i64.xor")
    .i64(1n << 62n)
    .op("i64.and")
    .op("i64.or");
  f.store("i64.store", STATE.x);
  f.get(cpu).get(result).i64(0).op("i64.ne").op("i64.extend_i32_u").store("i64.store", STATE.result);
  for (const { at, size } of BETWEEN_RUNS)
    if (size === 4) f.get(cpu).i32(0).store("i32.store", at);
    else f.get(cpu).i64(0).store("i64.store", at);
  f.get(cpu).i64(EMPTY_PAGE).store("i64.store", STATE.secondReadTlb);
  f.get(cpu)
    .i64(0)
    .store("i64.store", STATE.secondReadTlb + 8);
}
