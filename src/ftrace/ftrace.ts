// Call-site records, and the ops that sites are directed to.
//
// What is wanted of each site follows from who is registered; what text has is kept beside it, and steps on the agenda
// bring the one to the other: whoever is new is linked for the list function, sites are rewritten, who has gone is
// unlinked, and what was theirs is freed once nobody can be in it. Refuses, without a change, what cannot be.

import { type Addr, addr, hex, offset } from "../base/addr.ts";
import { hexBytes, sameBytes } from "../base/bytes.ts";
import { refuse } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import type { Agenda, Step } from "../machine/agenda.ts";
import type { Heap } from "../machine/heap.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { Memory } from "../machine/memory.ts";
import { Pool } from "../machine/pool.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { StructView } from "../machine/struct.ts";
import { matches, type Pattern } from "./filter.ts";
import { type FtraceHash, freeHash, makeHash } from "./hash.ts";
import { FTRACE_FL, FTRACE_OPS, FTRACE_OPS_FLAG, TRACED_CALL } from "./layout.ts";
import { bugLines, enabledFunctions, type Name } from "./listing.ts";
import { type DirectOptions, FtraceOps, type OpsOptions } from "./ops.ts";
import { callBytes, jumpBytes, NOP5, SITE_SIZE } from "./site.ts";
import { type PokeFailure, type TextPoke, TextPoker } from "./textPoke.ts";
import { freeTrampoline, makeTrampoline, TEMPLATES, type TemplateKind } from "./trampoline.ts";

export type { DirectOptions, FtraceOps, OpsOptions, TracedCall } from "./ops.ts";

/** What a site's five bytes are. */
export type Target =
  | { readonly kind: "nop" }
  /** A trampoline of one ops, one that several share, or a direct ops' own code. */
  | {
      readonly kind: "call";
      readonly to: Addr;
      readonly by: FtraceOps | undefined;
      /** What is called has all registers. */
      readonly regs: boolean;
    }
  | { readonly kind: "jump"; readonly to: Addr; readonly by: FtraceOps };

const NOP: Target = { kind: "nop" };

/** One call site: `ip` is the first of its five bytes. */
export class FtraceRecord {
  readonly ip: Addr;
  readonly symbol: string;
  /** The image that it is in. */
  readonly module: string;
  private readonly registry: Kept<Registry>;

  constructor(ip: Addr, symbol: string, module: string, registry: Kept<Registry>) {
    this.ip = ip;
    this.symbol = symbol;
    this.module = module;
    this.registry = registry;
  }

  /** Who wants to be called here, the last one registered first. */
  get callers(): readonly FtraceOps[] {
    const { ops } = this.registry.value;
    return ops.filter(({ state }) => state.value.sites.has(this.ip)).reverse();
  }

  /** The only one of those; undefined if there is none, or more. */
  get ops(): FtraceOps | undefined {
    const { callers } = this;
    return callers.length === 1 ? callers[0] : undefined;
  }

  /** What text has. */
  get target(): Target {
    return this.registry.value.text.get(this.ip) ?? NOP;
  }

  /** How many want to be called here. */
  get count(): number {
    return this.callers.length;
  }

  /** As the kernel has them: `FTRACE_FL`, and the count. Those with `_EN` say what text has, the others what is wanted. */
  get flags(): number {
    const { callers, target } = this;
    const by = target.kind === "nop" ? undefined : target.by;
    const flags: Readonly<Record<keyof typeof FTRACE_FL, boolean>> = {
      FTRACE_FL_ENABLED: target.kind !== "nop",
      FTRACE_FL_REGS: this.has("FTRACE_OPS_FL_SAVE_REGS"),
      FTRACE_FL_REGS_EN: target.kind === "call" && target.regs,
      FTRACE_FL_TRAMP: callers.length === 1 && callers[0]?.direct === undefined,
      FTRACE_FL_TRAMP_EN: target.kind === "call" && by !== undefined && by.direct === undefined,
      FTRACE_FL_IPMODIFY: this.has("FTRACE_OPS_FL_IPMODIFY"),
      FTRACE_FL_DISABLED: this.isBroken,
      FTRACE_FL_DIRECT: this.has("FTRACE_OPS_FL_DIRECT"),
      FTRACE_FL_DIRECT_EN: by?.direct !== undefined,
    };
    const names = Object.keys(flags) as (keyof typeof FTRACE_FL)[];
    return names.reduce((sum, name) => sum + (flags[name] ? FTRACE_FL[name] : 0), this.count);
  }

  has(flag: "FTRACE_OPS_FL_SAVE_REGS" | "FTRACE_OPS_FL_IPMODIFY" | "FTRACE_OPS_FL_DIRECT"): boolean {
    return this.callers.some((ops) => ops.has(flag));
  }

  /** Something else than expected was found there once: it is left alone. */
  get isBroken(): boolean {
    return this.registry.value.broken.has(this.ip);
  }
}

interface Registry {
  readonly records: ReadonlyMap<Addr, FtraceRecord>;
  /** Those that are registered, the first first. */
  readonly ops: readonly FtraceOps[];
  /** What the guest's list has, its first first. */
  readonly linked: readonly FtraceOps[];
  /** Of sites that are no NOPs. */
  readonly text: ReadonlyMap<Addr, Target>;
  readonly broken: ReadonlySet<Addr>;
  /** Whether anybody is called at all. */
  readonly enabled: boolean;
  /** All ops that calls may still be on the way to, by their structures. */
  readonly known: ReadonlyMap<Addr, FtraceOps>;
}

export interface FtraceParts {
  /** The kernel's image, which has the templates and `__fentry__`. */
  readonly image: Image;
  readonly memory: Memory;
  readonly code: CodeMap;
  /** For structures. */
  readonly heap: Heap;
  /** For trampolines: executable, within 2 GiB of every site. */
  readonly text: Heap;
  readonly keeper: Keeper;
  readonly agenda: Agenda;
  /** Makes every CPU serialise, and waits until all have. */
  readonly serialise: () => readonly Step[];
  /** Who may still be in code from `low` up to `high`, or come back to it, in words; undefined if nobody. */
  readonly holder: (low: Addr, high: Addr) => string | undefined;
  /** Answers from when on every CPU has been where no handler is at work. */
  readonly grace: () => () => boolean;
  /** A line of the kernel's log. */
  readonly print: (line: string) => void;
}

/** Where indirect-branch tracking is on, the site comes after `endbr64`. */
const ENDBR_SIZE = 4;
const STRAND = "ftrace";

export class Ftrace {
  readonly poker: TextPoker;
  private readonly parts: FtraceParts;
  private readonly registry: Kept<Registry>;
  private readonly data: Pool;
  private readonly text: Pool;
  private failure: PokeFailure | undefined;

  constructor(parts: FtraceParts) {
    const { keeper, memory, image } = parts;
    this.parts = parts;
    this.data = new Pool(parts.heap, keeper);
    this.text = new Pool(parts.text, keeper);
    this.registry = new Kept<Registry>(keeper, {
      records: new Map(),
      ops: [],
      linked: [],
      text: new Map(),
      broken: new Set(),
      enabled: true,
      known: new Map(),
    });
    this.poker = new TextPoker({
      memory,
      pool: this.data,
      desc: image.symbol("bp_desc").address,
      serialise: parts.serialise,
      name: this.name,
      isThere: (ip) => this.at(ip) !== undefined,
    });
    this.addImage(image);
  }

  // ---- Records.

  /** By address. */
  get records(): FtraceRecord[] {
    return [...this.registry.value.records.values()].sort((a, b) => a.ip - b.ip);
  }

  /** The site at `ip`, if one is there. */
  at(ip: Addr): FtraceRecord | undefined {
    return this.registry.value.records.get(ip);
  }

  /** The site of the function that begins at `address`. Refuses a function without one. */
  siteOf(address: Addr, name: string): FtraceRecord {
    const record = this.at(address) ?? this.at((address + ENDBR_SIZE) as Addr);
    return record?.symbol === name ? record : refuse("no-fentry", { func: name });
  }

  /** The lines of tracing/enabled_functions. */
  enabledFunctions(): string[] {
    return enabledFunctions(this.records, this.name);
  }

  /** Takes over the recorded sites of a loaded image: each `call __fentry__` becomes a NOP, or what those want who want all. */
  addImage(image: Image): void {
    const { memory, image: kernel } = this.parts;
    const fentry = kernel.symbol("__fentry__").address;
    const records = image.mcountLocations.map((ip) => {
      const found = image.symbolAt(ip);
      if (found === undefined) refuse("site-without-function", { site: hex(ip), image: image.name });
      const want = callBytes(ip, fentry);
      const bytes = memory.read(ip, SITE_SIZE);
      if (!sameBytes(bytes, want))
        refuse("site-bytes", { site: hex(ip), found: hexBytes(bytes), want: hexBytes(want) });
      return new FtraceRecord(ip, found.symbol.name, image.name, this.registry);
    });
    // Nothing is refused from here on: all sites are taken over, or none. Nobody executes them yet.
    for (const { ip } of records) memory.write(ip, NOP5);
    const all = new Map([
      ...this.registry.value.records,
      ...records.map((record) => [record.ip, record] as const),
    ]);
    this.set({ records: all });
    const wanting = this.registry.value.ops.filter((ops) => records.some((record) => wants(ops, record)));
    if (wanting.length === 0) return;
    for (const ops of wanting) this.resolve(ops);
    this.parts.agenda.add(STRAND, this.reconcile());
  }

  /** Forgets the sites of an image that is going to be unloaded, whatever they do: nothing executes them any more. */
  removeImage(image: Image): void {
    const gone = new Set(image.mcountLocations);
    const { records, text, broken, known } = this.registry.value;
    const without = <V>(map: ReadonlyMap<Addr, V>) => new Map([...map].filter(([ip]) => !gone.has(ip)));
    this.set({
      records: without(records),
      text: without(text),
      broken: new Set([...broken].filter((ip) => !gone.has(ip))),
    });
    for (const ops of known.values())
      if ([...ops.state.value.sites].some((ip) => gone.has(ip))) this.resolve(ops);
  }

  // ---- Ops.

  /** All that are registered, the first first. */
  get registered(): readonly FtraceOps[] {
    return this.registry.value.ops;
  }

  /** An ops, which nobody calls before it is registered. */
  makeOps(options: OpsOptions): FtraceOps {
    const { handler } = options;
    const isGuests = typeof handler === "number";
    const flags =
      flag(options.saveRegs, "FTRACE_OPS_FL_SAVE_REGS") |
      flag(options.recursion, "FTRACE_OPS_FL_RECURSION") |
      flag(options.ipmodify, "FTRACE_OPS_FL_IPMODIFY") |
      flag(options.permanent, "FTRACE_OPS_FL_PERMANENT");
    return this.addOps(options.name, {
      func: isGuests ? handler : this.symbol("ftrace_hypercall_func"),
      call: isGuests ? undefined : handler,
      own: options.own ?? 0,
      flags,
      direct: undefined,
      sharesIpmodify: false,
    });
  }

  /** An ops whose sites call `target` itself, as they would a trampoline. */
  makeDirect({ name, target, sharesIpmodify = false }: DirectOptions): FtraceOps {
    return this.addOps(name, {
      func: this.symbol("call_direct_funcs"),
      call: undefined,
      own: target,
      flags: FTRACE_OPS_FLAG.FTRACE_OPS_FL_DIRECT | FTRACE_OPS_FLAG.FTRACE_OPS_FL_SAVE_REGS,
      direct: target,
      sharesIpmodify,
    });
  }

  /**
   * Which functions `ops` is for, and which of those it is not: all, but for none, if nothing is given. Refuses a pattern
   * that no function fits, and what `register` would refuse.
   */
  setFilter(ops: FtraceOps, filter: readonly Pattern[], notrace: readonly Pattern[] = []): void {
    for (const pattern of [...filter, ...notrace])
      if (!this.records.some((record) => matches(pattern, record)))
        refuse("filter-no-match", { pattern: typeof pattern === "number" ? hex(pattern) : pattern });
    const before = ops.state.value;
    ops.change({ filter, notrace });
    this.resolve(ops);
    if (!ops.isRegistered) return;
    try {
      this.refuseConflicts(ops);
    } catch (error) {
      ops.state.value = before;
      throw error;
    }
    this.carryOut(() => {
      ops.change({ filter: before.filter, notrace: before.notrace });
      this.resolve(ops);
    });
  }

  /** Has `ops` called at the sites of its functions. Refuses what cannot be, with the kernel's error. */
  register(ops: FtraceOps): void {
    if (ops.isRegistered) refuse("ops-registered", { ops: ops.name });
    if (ops.state.value.released) refuse("ops-released", { ops: ops.name });
    if (!this.enabled && ops.has("FTRACE_OPS_FL_PERMANENT")) refuse("ops-permanent-off", { ops: ops.name });
    this.resolve(ops);
    this.refuseConflicts(ops);
    ops.change({ registered: true, trampoline: ops.trampoline ?? this.makeTrampoline(ops) });
    const { ops: all } = this.registry.value;
    this.set({ ops: [...all, ops] });
    this.carryOut(() => this.withdraw(ops));
  }

  /** The opposite. What was the ops' is freed as soon as nobody can be in it. */
  unregister(ops: FtraceOps): void {
    if (!ops.isRegistered) refuse("ops-not-registered", { ops: ops.name });
    const before = this.registry.value.ops;
    this.withdraw(ops);
    this.carryOut(() => {
      ops.change({ registered: true });
      this.set({ ops: before });
    });
  }

  /**
   * While `ops` is alone at a site, its handler can only do one thing there: go on at `to`. Then the site jumps there, and
   * nothing decides any more. undefined: the handler decides again; done once no CPU can execute the jump any more.
   */
  settle(ops: FtraceOps, to: Addr | undefined): void {
    const { settled } = ops.state.value;
    if (to === settled) return;
    ops.change({ settled: to });
    if (ops.isRegistered) this.carryOut(() => ops.change({ settled }));
  }

  /** Whether anybody is called: sysctl kernel.ftrace_enabled. */
  get enabled(): boolean {
    return this.registry.value.enabled;
  }

  set enabled(on: boolean) {
    if (on === this.enabled) return;
    const permanent = this.registered.find((ops) => ops.has("FTRACE_OPS_FL_PERMANENT"));
    if (!on && permanent !== undefined) refuse("ops-permanent", { ops: permanent.name });
    this.set({ enabled: on });
    this.carryOut(() => this.set({ enabled: !on }));
  }

  /** Has `ops` called at one more site. Refuses one that somebody is called at. */
  enable(record: FtraceRecord, ops: FtraceOps): void {
    const { callers } = record;
    if (callers.length > 0) refuse("site-is-on", { func: record.symbol, ops: callers.join(", ") });
    const { filter } = ops.state.value;
    if (ops.isRegistered) this.setFilter(ops, [...filter, record.ip]);
    else {
      this.setFilter(ops, [record.ip]);
      this.register(ops);
    }
  }

  /** Has nobody called at a site any more. */
  disable(record: FtraceRecord): void {
    const { callers } = record;
    if (callers.length === 0) refuse("site-is-off", { func: record.symbol });
    for (const ops of callers) {
      const left = [...ops.state.value.sites].filter((ip) => ip !== record.ip);
      if (left.length === 0) this.unregister(ops);
      else this.setFilter(ops, left);
    }
  }

  /** A call of a handler in TypeScript, described at `at`. False if there is none for it. */
  handle(at: Addr): boolean {
    const { memory } = this.parts;
    const call = new StructView(memory, TRACED_CALL, at);
    const address = (field: keyof typeof TRACED_CALL.fields) => call.getNumber(field) as Addr;
    const ops = this.registry.value.known.get(address("ops"));
    if (ops?.call === undefined) return false;
    const regs = new StructView(memory, PT_REGS, address("regs"));
    ops.call({ ip: address("ip"), parentIp: address("parent_ip"), ops, regs });
    return true;
  }

  // ---- What is wanted, and how it comes about.

  /** What the site's bytes are to be. */
  private wanted(record: FtraceRecord): Target {
    const { callers } = record;
    const [first] = callers;
    if (first === undefined || !this.enabled) return NOP;
    const template = templateFor(callers);
    if (callers.length > 1)
      return { kind: "call", to: this.symbol(TEMPLATES[template]), by: undefined, regs: template === "regs" };
    const { settled, trampoline } = first.state.value;
    if (settled !== undefined) return { kind: "jump", to: settled, by: first };
    if (first.direct !== undefined) return { kind: "call", to: first.direct, by: first, regs: false };
    return { kind: "call", to: trampoline!.address, by: first, regs: template === "regs" };
  }

  /** Brings about what is wanted; if that fails `undo` says what is wanted instead, and it is refused. */
  private carryOut(undo: () => void): void {
    const { agenda } = this.parts;
    this.failure = undefined;
    agenda.add(STRAND, this.reconcile(undo));
    const failure = this.failure as PokeFailure | undefined;
    this.failure = undefined;
    if (failure === undefined) return;
    const [found, want] = [hexBytes(failure.found), hexBytes(failure.expected)];
    refuse("site-bytes", { site: hex(failure.ip), found, want });
  }

  private reconcile(undo?: () => void): readonly Step[] {
    const rewrite: Step = {
      what: "rewrite sites",
      run: () => {
        const changes = this.changes();
        return this.poker.steps(
          changes.map(({ poke }) => poke),
          (failure) => {
            if (failure === undefined) {
              this.note(changes);
              return this.retire();
            }
            this.failure = failure;
            this.report(failure, changes);
            if (undo === undefined) {
              // Nobody asked for this one: it is left alone from now on, and the others get what they want.
              this.set({ broken: new Set([...this.registry.value.broken, failure.ip]) });
              return this.reconcile();
            }
            undo();
            // What is wanted now is what was before: there may be ops to link again, or to unlink.
            return [this.link, ...this.retire()];
          },
        );
      },
    };
    return [this.link, rewrite];
  }

  /** Has the list function find whoever is registered, before any site leads to it. */
  private readonly link: Step = {
    what: "link ops",
    run: () => {
      const { linked, ops: registered } = this.registry.value;
      let list = linked;
      for (const ops of registered) {
        const { hash, sites } = ops.state.value;
        if (hash === undefined || !isSame(hash.addresses, sites)) this.replaceHash(ops, [...sites]);
        if (list.includes(ops)) continue;
        // The ops is whole before the list leads to it.
        ops.struct.set("next", list[0]?.struct.at ?? 0);
        this.writeLink(undefined, ops);
        list = [ops, ...list];
      }
      this.set({ linked: list });
      return undefined;
    },
  };

  /**
   * Unlinks who is registered no more, and frees what was theirs once nobody can be in it. Not of those whom a site leads to yet:
   * they were unregistered since the sites were looked at, and have their turn.
   */
  private retire(): readonly Step[] {
    return [
      {
        what: "unlink ops",
        run: () => {
          for (const ops of this.registry.value.linked) if (!ops.isRegistered) this.unlink(ops);
          for (const ops of this.registry.value.known.values()) {
            const { trampoline, hash } = ops.state.value;
            if (ops.isRegistered || this.isLedTo(ops)) continue;
            ops.change({ trampoline: undefined, hash: undefined });
            if (trampoline !== undefined) this.free(ops, trampoline, hash);
            else if (hash !== undefined) this.freeLater(`set of ${ops}`, () => freeHash(this.data, hash));
          }
          return undefined;
        },
      },
    ];
  }

  /** Whether text at any site is the ops' own. */
  private isLedTo(ops: FtraceOps): boolean {
    return [...this.registry.value.text.values()].some(
      (target) => target.kind !== "nop" && target.by === ops,
    );
  }

  private unlink(ops: FtraceOps): void {
    const { linked } = this.registry.value;
    const n = linked.indexOf(ops);
    this.writeLink(linked[n - 1], linked[n + 1]);
    this.set({ linked: linked.filter((other) => other !== ops) });
  }

  /** Makes `next` follow `ops` in the guest's list, or begin it. */
  private writeLink(ops: FtraceOps | undefined, next: FtraceOps | undefined): void {
    const to = next?.struct.at ?? addr(0);
    if (ops !== undefined) ops.struct.set("next", to);
    else this.parts.memory.writeWord(this.symbol("ftrace_ops_list"), BigInt(to));
  }

  private replaceHash(ops: FtraceOps, addresses: readonly Addr[]): void {
    const { hash } = ops.state.value;
    const made = makeHash(this.parts.memory, this.data, addresses);
    ops.struct.set("hash", made.at);
    ops.change({ hash: made });
    if (hash !== undefined) this.freeLater(`set of ${ops.name}`, () => freeHash(this.data, hash));
  }

  /** What a trampoline leads to is read by handlers only, which a grace period waits for. */
  private free(ops: FtraceOps, trampoline: CodeRange, hash: FtraceHash | undefined): void {
    const { address, size, name } = trampoline;
    const end = offset(address, size);
    ops.change({ lingering: ops.state.value.lingering + 1 });
    this.parts.agenda.add(`free ${name}`, [
      {
        what: `wait until nobody is in ${name}`,
        ready: () => this.parts.holder(address, end) === undefined,
        run: () => {
          freeTrampoline(this.trampolineParts, trampoline);
          ops.change({ lingering: ops.state.value.lingering - 1 });
          if (hash !== undefined) this.freeLater(`set of ${name}`, () => freeHash(this.data, hash));
          return undefined;
        },
      },
    ]);
  }

  private freeLater(what: string, run: () => void): void {
    this.parts.agenda.add(`free ${what}`, [
      {
        what: `grace period for ${what}`,
        run: () => [
          {
            what: `grace period for ${what}`,
            ready: this.parts.grace(),
            run: () => {
              run();
              return undefined;
            },
          },
        ],
      },
    ]);
  }

  /** Sites whose text is not what is wanted. */
  private changes(): readonly Change[] {
    const found: Change[] = [];
    for (const record of this.records) {
      if (record.isBroken) continue;
      const [from, to] = [record.target, this.wanted(record)];
      const [old, bytes] = [bytesOf(record.ip, from), bytesOf(record.ip, to)];
      if (sameBytes(old, bytes)) continue;
      found.push({ record, to, poke: { ip: record.ip, old, new: bytes } });
    }
    return found;
  }

  private note(changes: readonly Change[]): void {
    const text = new Map(this.registry.value.text);
    for (const { record, to } of changes) {
      if (to.kind === "nop" || this.at(record.ip) === undefined) text.delete(record.ip);
      else text.set(record.ip, to);
    }
    this.set({ text });
  }

  private report(failure: PokeFailure, changes: readonly Change[]): void {
    const change = changes.find(({ record }) => record.ip === failure.ip);
    if (change === undefined) return;
    for (const line of bugLines(change.record, failure, change.to, this.name)) this.parts.print(line);
  }

  private readonly name: Name = (at) =>
    this.parts.code.describe(typeof at === "number" ? at : this.symbol(at));

  private withdraw(ops: FtraceOps): void {
    ops.change({ registered: false });
    this.set({ ops: this.registry.value.ops.filter((other) => other !== ops) });
  }

  /** Finds the sites that the ops wants. */
  private resolve(ops: FtraceOps): void {
    const sites = this.records.filter((record) => wants(ops, record)).map(({ ip }) => ip);
    ops.change({ sites: new Set(sites) });
  }

  /** At most one ops changes where a site goes on; a direct call has to cope with that. */
  private refuseConflicts(ops: FtraceOps): void {
    const [ipmodify, direct] = [ops.has("FTRACE_OPS_FL_IPMODIFY"), ops.has("FTRACE_OPS_FL_DIRECT")];
    if (!ipmodify && !direct) return;
    const { sites, filter } = ops.state.value;
    if (filter.length === 0) refuse("ops-without-filter", { ops: ops.name });
    for (const ip of sites) {
      const record = this.at(ip)!;
      for (const other of record.callers) {
        if (other === ops) continue;
        const names = { func: record.symbol, ops: ops.name, other: other.name };
        if (ipmodify && other.has("FTRACE_OPS_FL_IPMODIFY")) refuse("ipmodify-twice", names);
        if (direct && other.has("FTRACE_OPS_FL_DIRECT")) refuse("direct-twice", names);
        const pair = ipmodify ? other : ops;
        const isPair = ipmodify ? other.has("FTRACE_OPS_FL_DIRECT") : other.has("FTRACE_OPS_FL_IPMODIFY");
        if (isPair && !pair.sharesIpmodify) refuse("ipmodify-direct", names);
      }
    }
  }

  private addOps(
    name: string,
    {
      own,
      ...parts
    }: Omit<ConstructorParameters<typeof FtraceOps>[1], "name" | "struct"> & {
      readonly own: Addr | number;
    },
  ): FtraceOps {
    const { memory, keeper } = this.parts;
    const struct = new StructView(memory, FTRACE_OPS, this.data.take(FTRACE_OPS.size));
    struct.set("func", parts.func);
    struct.set("private", own);
    struct.set("flags", parts.flags);
    struct.set("next", 0);
    struct.set("hash", 0);
    const ops = new FtraceOps(keeper, { name, struct, ...parts });
    this.set({ known: new Map([...this.registry.value.known, [struct.at, ops]]) });
    return ops;
  }

  /** Gives back what an ops takes that is not registered and is not going to be; once no trampoline leads to it any more. */
  release(ops: FtraceOps): void {
    if (ops.isRegistered) refuse("ops-registered", { ops: ops.name });
    if (ops.state.value.released) refuse("ops-released", { ops: ops.name });
    ops.change({ released: true });
    const { at } = ops.struct;
    const free = () =>
      this.freeLater(ops.name, () => {
        const known = new Map(this.registry.value.known);
        known.delete(at);
        this.set({ known });
        this.data.give(at, FTRACE_OPS.size);
      });
    // Behind its being unregistered; beside what comes after that.
    this.parts.agenda.add(STRAND, [
      {
        what: `release ${ops.name}`,
        run: () => {
          this.parts.agenda.add(`release ${ops.name}`, [
            {
              what: `wait until nothing leads to ${ops.name}`,
              ready: () => this.isLeft(ops),
              run: () => {
                free();
                return undefined;
              },
            },
          ]);
          return undefined;
        },
      },
    ]);
  }

  /** Whether no trampoline, and no list, leads to the ops any more. */
  private isLeft(ops: FtraceOps): boolean {
    const { trampoline, lingering } = ops.state.value;
    return trampoline === undefined && lingering === 0 && !this.registry.value.linked.includes(ops);
  }

  /** None for a direct ops, whose sites need none. */
  private makeTrampoline(ops: FtraceOps): CodeRange | undefined {
    if (ops.direct !== undefined) return undefined;
    return makeTrampoline(this.trampolineParts, templateFor([ops]), ops.struct.at, this.handlerOf(ops));
  }

  /** Who is called by a trampoline of the ops' own. */
  private handlerOf(ops: FtraceOps): Addr {
    return ops.has("FTRACE_OPS_FL_RECURSION") ? this.symbol("ftrace_ops_assist_func") : ops.func;
  }

  private get trampolineParts() {
    const { image, memory, code } = this.parts;
    return { image, memory, code, text: this.text };
  }

  private symbol(name: string): Addr {
    return this.parts.image.symbol(name).address;
  }

  private set(to: Partial<Registry>): void {
    this.registry.value = { ...this.registry.value, ...to };
  }
}

interface Change {
  readonly record: FtraceRecord;
  readonly to: Target;
  readonly poke: TextPoke;
}

/** What all of `callers` can do with. */
function templateFor(callers: readonly FtraceOps[]): TemplateKind {
  const anyHas = (name: keyof typeof FTRACE_OPS_FLAG) => callers.some((ops) => ops.has(name));
  if (anyHas("FTRACE_OPS_FL_SAVE_REGS")) return "regs";
  return anyHas("FTRACE_OPS_FL_IPMODIFY") ? "ipmodify" : "plain";
}

function bytesOf(ip: Addr, target: Target): Uint8Array {
  switch (target.kind) {
    case "nop":
      return NOP5;
    case "call":
      return callBytes(ip, target.to);
    case "jump":
      return jumpBytes(ip, target.to);
  }
}

function wants({ state }: FtraceOps, record: FtraceRecord): boolean {
  const { filter, notrace } = state.value;
  const isIn = filter.length === 0 || filter.some((pattern) => matches(pattern, record));
  return isIn && !notrace.some((pattern) => matches(pattern, record));
}

function isSame(addresses: readonly Addr[], sites: ReadonlySet<Addr>): boolean {
  return addresses.length === sites.size && addresses.every((at) => sites.has(at));
}

function flag(on: boolean | undefined, name: keyof typeof FTRACE_OPS_FLAG): number {
  return on === true ? FTRACE_OPS_FLAG[name] : 0;
}
