// Regions: code that ran often, compiled in batches of blocks, and retired when a byte of it changes.
//
// A retired region is kept for a while: when a call site is poked back, its old code matches
// memory again and is used as it is.

import { type Addr, pageOf, pagesOf } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { ModuleBuilder } from "../wasm/module.ts";
import { type Instruction, Mnemonic } from "../x86/decode.ts";
import { type Block, emitRegion, type StopPoint } from "../x86/lift/region.ts";
import { definitionOf } from "../x86/lift/table.ts";
import { fetch } from "./code.ts";
import type { Host } from "./host.ts";
import type { Memory } from "./memory.ts";
import type { Slots } from "./slots.ts";

const MAX_BLOCKS = 64;
const MAX_INSTRUCTIONS = 512;
const MAX_BLOCK_LENGTH = 64;
/** Retired regions kept, the oldest going first. */
const MAX_RETIRED = 64;
/**
 * Instructions that active regions may hold, each region counting for REGION_WEIGHT more; then all are retired. Code can be
 * entered at every byte: what is made of it would have no bound but its size.
 */
const MAX_WEIGHT = 1 << 18;
const REGION_WEIGHT = 64;

export interface Region {
  readonly slot: number;
  /** Its blocks in the order of their entry numbers. */
  readonly blocks: readonly Block[];
  readonly stopPoints: readonly StopPoint[];
  /** The bytes that it was made from: all its instructions. */
  readonly code: readonly { readonly at: Addr; readonly bytes: Uint8Array }[];
  readonly recording: boolean;
  /** It runs at privilege level 3 only, or else at level 0 only. */
  readonly user: boolean;
}

export class Regions {
  /** While it is set, none is found or made: everything is interpreted. */
  suspended = false;
  private readonly host: Host;
  private readonly memory: Memory;
  private readonly slots: Slots;
  private readonly recording: () => boolean;
  private readonly retired: (region: Region) => void;
  private readonly active = new Map<number, Region>();
  /** By `entryKey`. */
  private readonly entries = new Map<number, { region: Region; entry: number }>();
  private readonly byPage = new Map<Addr, Set<Region>>();
  /** Retired ones, the oldest first; and those with a block at an address. */
  private readonly kept = new Set<Region>();
  private readonly keptWith = new Map<Addr, Set<Region>>();
  private readonly stops = new Map<Addr, number>();
  /** Of the active ones, as MAX_WEIGHT counts. */
  private weight = 0;

  /** `retired` is told of every region whose jump-cache entries must go. */
  constructor(
    host: Host,
    memory: Memory,
    slots: Slots,
    recording: () => boolean,
    retired: (region: Region) => void,
  ) {
    this.host = host;
    this.memory = memory;
    this.slots = slots;
    this.recording = recording;
    this.retired = retired;
  }

  get activeCount(): number {
    return this.active.size;
  }

  get keptCount(): number {
    return this.kept.size;
  }

  /** The region in table slot `slot`, which is active. */
  inSlot(slot: number): Region | undefined {
    return this.active.get(slot);
  }

  /** The active region that has a block at `ip`; one that was retired and fits memory again becomes active. */
  find(ip: Addr, user = false): { region: Region; entry: number } | undefined {
    if (this.suspended) return undefined;
    const found = this.entries.get(entryKey(ip, user));
    if (found !== undefined) return found;
    for (const region of this.keptWith.get(ip) ?? []) {
      if (region.user !== user || !this.fits(region)) continue;
      this.forget(region);
      this.activate(region);
      return this.entries.get(entryKey(ip, user));
    }
    return undefined;
  }

  /**
   * Compiles the code reachable from `ip`, for the kernel or user code; undefined if not even its first instruction can
   * be. `went` says where instructions went when they were last seen; it guides the layout, and correctness does not
   * rest on it. Code that was left in the middle of a block is entered there again: of it only the rest of the block is
   * made, since everything behind that is compiled.
   */
  compile(
    ip: Addr,
    went: ReadonlyMap<Addr, Addr> = new Map(),
    user = false,
  ): { region: Region; entry: number } | undefined {
    const blocks = this.suspended ? [] : this.discover(ip, went);
    if (blocks.length === 0) return undefined;
    if (this.weight > MAX_WEIGHT) this.retireAll();
    const slot = this.slots.reserve();
    const recording = this.recording();
    const emitted = emitRegion(blocks, { went, slot, recording, user });
    const module = new ModuleBuilder();
    module.importMemory("host", "memory", { minimum: 1 });
    module.function(emitted.function, "region");
    const compiled = new WebAssembly.Module(module.encode());
    const { exports } = new WebAssembly.Instance(compiled, { host: { memory: this.host.memory } });
    this.slots.fill(slot, exports.region!);
    const code = blocks.map(({ ip: at, instructions }) => {
      const size = instructions.reduce((sum, instruction) => sum + instruction.length, 0);
      return { at, bytes: this.memory.read(at, size) };
    });
    this.activate({ slot, blocks, stopPoints: emitted.stopPoints, code, recording, user });
    return this.entries.get(entryKey(ip, user));
  }

  /** Retires what was made from bytes of `[at, at + size)`. */
  invalidate(at: Addr, size: number): void {
    for (const region of [...(this.byPage.get(pageOf(at)) ?? [])]) {
      if (region.code.some((part) => part.at < at + size && part.at + part.bytes.length > at))
        this.retire(region);
    }
  }

  retireAll(): void {
    for (const region of [...this.active.values()]) this.retire(region);
  }

  /** Until it is removed, no region runs past `ip`: code that reaches it comes back to the run loop. */
  addStop(ip: Addr): void {
    this.stops.set(ip, (this.stops.get(ip) ?? 0) + 1);
    for (const region of [...(this.byPage.get(pageOf(ip)) ?? [])]) if (holds(region, ip)) this.retire(region);
  }

  removeStop(ip: Addr): void {
    const count = this.stops.get(ip)! - 1;
    if (count === 0) this.stops.delete(ip);
    else this.stops.set(ip, count);
  }

  hasStop(ip: Addr): boolean {
    return this.stops.has(ip);
  }

  private fits(region: Region): boolean {
    if (region.recording !== this.recording()) return false;
    for (const stop of this.stops.keys()) if (holds(region, stop)) return false;
    const user = this.memory.find(region.code[0]!.at)?.access.user;
    return region.code.every(({ at, bytes }) => {
      const executable = pagesOf(at, bytes.length).every((page) => {
        const access = this.memory.find(page)?.access;
        return access?.execute === true && access.user === user;
      });
      return executable && sameBytes(this.memory.read(at, bytes.length), bytes);
    });
  }

  private activate(region: Region): void {
    this.active.set(region.slot, region);
    this.weight += weightOf(region);
    region.blocks.forEach(({ ip }, entry) => {
      const key = entryKey(ip, region.user);
      if (!this.entries.has(key)) this.entries.set(key, { region, entry });
    });
    for (const { at, bytes } of region.code) {
      for (const page of pagesOf(at, bytes.length)) {
        // A retired region's pages may have been unmapped and mapped anew since.
        this.memory.markCode(page);
        addTo(this.byPage, page, region);
      }
    }
  }

  private retire(region: Region): void {
    this.active.delete(region.slot);
    this.weight -= weightOf(region);
    for (const { ip } of region.blocks) {
      const key = entryKey(ip, region.user);
      if (this.entries.get(key)?.region === region) this.entries.delete(key);
    }
    for (const { at, bytes } of region.code) {
      for (const page of pagesOf(at, bytes.length)) removeFrom(this.byPage, page, region);
    }
    this.retired(region);
    this.kept.add(region);
    for (const { ip } of region.blocks) addTo(this.keptWith, ip, region);
    const [oldest] = this.kept;
    if (this.kept.size > MAX_RETIRED && oldest !== undefined) {
      this.forget(oldest);
      this.slots.release(oldest.slot);
    }
  }

  private forget(region: Region): void {
    this.kept.delete(region);
    for (const { ip } of region.blocks) removeFrom(this.keptWith, ip, region);
  }

  /** Whether an active region has the instruction at `ip`, in whatever place of a block. */
  private isCompiled(ip: Addr): boolean {
    for (const region of this.byPage.get(pageOf(ip)) ?? []) if (holds(region, ip)) return true;
    return false;
  }

  /** Basic blocks reachable from `ip` by branches whose targets are known; callees and return points included. */
  private discover(ip: Addr, went: ReadonlyMap<Addr, Addr>): Block[] {
    const user = this.memory.find(ip)?.access.user === true;
    const instructions = new Map<Addr, Instruction>();
    if (this.liftable(ip, user, instructions) === undefined) return [];
    const maxBlocks = this.isCompiled(ip) ? 1 : MAX_BLOCKS;
    const leaders = new Set<Addr>();
    const pending: Addr[] = [ip];
    while (pending.length > 0 && leaders.size < maxBlocks && instructions.size < MAX_INSTRUCTIONS) {
      const leader = pending.pop()!;
      if (leaders.has(leader) || this.stops.has(leader)) continue;
      if (this.liftable(leader, user, instructions) === undefined) continue;
      leaders.add(leader);
      for (let at = leader; instructions.size < MAX_INSTRUCTIONS; ) {
        const instruction = this.liftable(at, user, instructions);
        if (instruction === undefined) break;
        const known = instructions.has(at);
        instructions.set(at, instruction);
        const role = definitionOf(instruction)?.role;
        if (role !== "straight") {
          if (instruction.repeat !== undefined) pending.push(instruction.ip);
          const indirect = isIndirect(instruction) ? went.get(at) : undefined;
          const goesOn = role === "branches" ? [instruction.next] : [];
          const target = instruction.operands[0];
          const goesTo = target?.kind === "target" ? [target.at] : indirect !== undefined ? [indirect] : [];
          // What is on top is laid out next: a callee before the code it returns to, else what follows.
          const calls = instruction.mnemonic === Mnemonic.Call;
          pending.push(...(calls ? [...goesOn, ...goesTo] : [...goesTo, ...goesOn]));
          break;
        }
        at = instruction.next;
        if (known || leaders.has(at) || this.stops.has(at)) break;
      }
    }
    return [...leaders]
      .map((leader) => block(leader, leaders, instructions))
      .filter(({ instructions: run }) => run.length > 0);
  }

  private liftable(at: Addr, user: boolean, known: ReadonlyMap<Addr, Instruction>): Instruction | undefined {
    const seen = known.get(at);
    if (seen !== undefined) return seen;
    const fetched = fetch(this.memory, at);
    if (fetched.kind !== "instruction") return undefined;
    const definition = definitionOf(fetched.instruction);
    if (definition === undefined || definition.role === "alone") return undefined;
    // What one privilege level may execute, another may not: a region is of pages of one kind.
    const pages = pagesOf(at, fetched.instruction.length);
    return pages.every((page) => this.memory.find(page)?.access.user === user)
      ? fetched.instruction
      : undefined;
  }
}

/** From `leader` to the next leader, the next branch, or the end of what is known. */
function block(
  leader: Addr,
  leaders: ReadonlySet<Addr>,
  instructions: ReadonlyMap<Addr, Instruction>,
): Block {
  const run: Instruction[] = [];
  for (let at = leader; run.length < MAX_BLOCK_LENGTH; ) {
    const instruction = instructions.get(at);
    if (instruction === undefined) break;
    run.push(instruction);
    at = instruction.next;
    if (definitionOf(instruction)?.role !== "straight" || leaders.has(at)) break;
  }
  return { ip: leader, instructions: run };
}

/** One number for an address and a privilege level. */
function entryKey(ip: Addr, user: boolean): number {
  return 2 * ip + (user ? 1 : 0);
}

function weightOf({ blocks }: Region): number {
  return blocks.reduce((sum, { instructions }) => sum + instructions.length, REGION_WEIGHT);
}

function addTo(sets: Map<Addr, Set<Region>>, key: Addr, region: Region): void {
  const set = sets.get(key);
  if (set === undefined) sets.set(key, new Set([region]));
  else set.add(region);
}

function removeFrom(sets: Map<Addr, Set<Region>>, key: Addr, region: Region): void {
  const set = sets.get(key);
  set?.delete(region);
  if (set?.size === 0) sets.delete(key);
}

/** Whether a branch's target is data: a register, memory, the stack. */
function isIndirect(instruction: Instruction): boolean {
  return (
    [Mnemonic.Ret, Mnemonic.Jmp, Mnemonic.Call].includes(instruction.mnemonic) &&
    instruction.operands[0]?.kind !== "target"
  );
}

function holds(region: Region, ip: Addr): boolean {
  return region.stopPoints.some((point) => point.ip === ip);
}
