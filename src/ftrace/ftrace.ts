// Call-site records, and the ops that sites are directed to.
//
// What is wanted of each site follows from who is registered; what text has is kept beside it, and reconcile.ts brings the one to
// the other, in steps on the agenda. Refuses, without a change, what cannot be.

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes, sameBytes } from "../base/bytes.ts";
import { refuse } from "../base/refuse.ts";
import type { CodeMap, CodeRange } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import { type Agenda, act, type Step } from "../machine/agenda.ts";
import type { Heap } from "../machine/heap.ts";
import { type Keeper, Kept } from "../machine/kept.ts";
import type { Memory } from "../machine/memory.ts";
import { POISON, Pool } from "../machine/pool.ts";
import { PT_REGS } from "../machine/ptRegs.ts";
import { StructView } from "../machine/struct.ts";
import { refuseConflicts } from "./conflict.ts";
import { matches, type Pattern } from "./filter.ts";
import { FTRACE_OPS, FTRACE_OPS_FLAG, TRACED_CALL } from "./layout.ts";
import { bugLines, enabledFunctions, type Name } from "./listing.ts";
import { type DirectOptions, FtraceOps, flagsOf, type OpsOptions, type OpsParts } from "./ops.ts";
import { OpsList } from "./opsList.ts";
import { Reclaimer } from "./reclaim.ts";
import { FTRACE_STRAND, Reconciler } from "./reconcile.ts";
import { FtraceRecord, NOP, type Registry, type Target } from "./record.ts";
import { callBytes, NOP5, SITE_SIZE } from "./site.ts";
import { TextPoker } from "./textPoke.ts";
import { makeTrampoline, TEMPLATES, type TrampolineParts, templateFor } from "./trampoline.ts";

export type { DirectOptions, FtraceOps, OpsOptions, TracedCall } from "./ops.ts";
export type { FtraceRecord, Target } from "./record.ts";

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

export class Ftrace {
  readonly poker: TextPoker;
  private readonly parts: FtraceParts;
  private readonly registry: Kept<Registry>;
  private readonly data: Pool;
  private readonly trampolines: TrampolineParts;
  private readonly reconciler: Reconciler;
  private readonly reclaimer: Reclaimer;

  constructor(parts: FtraceParts) {
    const { keeper, memory, image, code, agenda, grace, holder } = parts;
    this.parts = parts;
    this.data = new Pool(parts.heap, keeper);
    const { data } = this;
    this.trampolines = { image, memory, code, text: new Pool(parts.text, keeper, POISON.text) };
    this.reclaimer = new Reclaimer({ agenda, trampolines: this.trampolines, data, holder, grace });
    this.registry = new Kept<Registry>(keeper, {
      records: new Map(),
      ops: [],
      linked: [],
      text: new Map(),
      broken: new Set(),
      poked: new Set(),
      enabled: true,
      known: new Map(),
    });
    this.poker = new TextPoker({
      memory,
      pool: data,
      desc: image.symbol("bp_desc").address,
      serialise: parts.serialise,
      name: this.name,
    });
    this.reconciler = new Reconciler({
      registry: this.registry,
      agenda,
      poker: this.poker,
      list: new OpsList({
        ...{ memory, pool: data, head: image.symbol("ftrace_ops_list").address, grace },
        retire: (ops, hash) => this.reclaimer.set(ops, hash),
      }),
      reclaimer: this.reclaimer,
      wanted: (record) => this.wanted(record),
      report: (record, failure, to) => {
        for (const line of bugLines(record, failure, to, this.name)) parts.print(line);
      },
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
    const wanting = this.registry.value.ops.filter((ops) => records.some((record) => ops.wants(record)));
    if (wanting.length === 0) return;
    for (const ops of wanting) this.resolve(ops);
    this.reconciler.follow();
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
    return this.addOps(options.name, {
      func: isGuests ? handler : this.symbol("ftrace_hypercall_func"),
      call: isGuests ? undefined : handler,
      own: options.own ?? 0,
      flags: flagsOf(options),
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
      refuseConflicts(ops, (ip) => this.at(ip));
    } catch (error) {
      ops.state.value = before;
      throw error;
    }
    this.reconciler.bringAbout(ops, () => {
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
    refuseConflicts(ops, (ip) => this.at(ip));
    this.admit(ops, this.registered.length);
    this.reconciler.bringAbout(ops, () => this.withdraw(ops));
  }

  /** The opposite. What was the ops' is freed as soon as nobody can be in it. */
  unregister(ops: FtraceOps): void {
    if (!ops.isRegistered) refuse("ops-not-registered", { ops: ops.name });
    const place = this.registered.indexOf(ops);
    this.withdraw(ops);
    this.reconciler.bringAbout(ops, () => {
      if (!ops.isRegistered && !ops.state.value.released) this.admit(ops, place);
    });
  }

  /** Whether all that follows from the ops' being registered, or not, has come about. */
  isDone(ops: FtraceOps): boolean {
    return this.reconciler.isDone(ops);
  }

  /**
   * Gives back what an ops takes that is not registered and is not going to be; once nothing leads to it any more. `then` gives back
   * what its `own` leads to.
   */
  release(ops: FtraceOps, then: () => void = () => {}): void {
    if (ops.isRegistered) refuse("ops-registered", { ops: ops.name });
    if (ops.state.value.released) refuse("ops-released", { ops: ops.name });
    ops.change({ released: true });
    const free = () => {
      const known = new Map(this.registry.value.known);
      known.delete(ops.struct.at);
      this.set({ known });
      this.data.give(ops.struct.at, FTRACE_OPS.size);
      then();
    };
    const { reclaimer } = this;
    const whenLeft = () =>
      reclaimer.when(
        ops.name,
        `nothing leads to ${ops.name}`,
        () => this.isLeft(ops),
        () => reclaimer.afterGrace(`the ops ${ops.name}`, free),
      );
    // Behind its being unregistered; beside what comes after that.
    this.parts.agenda.add(FTRACE_STRAND, [act(`release ${ops.name}`, whenLeft)]);
  }

  /**
   * While `ops` is alone at a site, its handler can only do one thing there: go on at `to`. Then the site jumps there, and
   * nothing decides any more. undefined: the handler decides again; done once no CPU can execute the jump any more.
   */
  settle(ops: FtraceOps, to: Addr | undefined): void {
    const { settled } = ops.state.value;
    if (to === settled) return;
    ops.change({ settled: to });
    if (ops.isRegistered) this.reconciler.bringAbout(ops, () => ops.change({ settled }));
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
    this.reconciler.bringAbout("all", () => this.set({ enabled: !on }));
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

  // ---- What is wanted: reconcile.ts brings it about.

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

  private readonly name: Name = (at) =>
    this.parts.code.describe(typeof at === "number" ? at : this.symbol(at));

  /** Among those who are registered, in that place. */
  private admit(ops: FtraceOps, place: number): void {
    ops.change({ registered: true, trampoline: ops.trampoline ?? this.makeTrampoline(ops) });
    this.set({ ops: this.registered.toSpliced(place, 0, ops) });
  }

  private withdraw(ops: FtraceOps): void {
    ops.change({ registered: false });
    this.set({ ops: this.registry.value.ops.filter((other) => other !== ops) });
  }

  /** Finds the sites that the ops wants. */
  private resolve(ops: FtraceOps): void {
    const sites = this.records.filter((record) => ops.wants(record)).map(({ ip }) => ip);
    ops.change({ sites: new Set(sites) });
  }

  private addOps(
    name: string,
    { own, ...parts }: Omit<OpsParts, "name" | "struct"> & { readonly own: Addr | number },
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

  /** Whether no trampoline, and no list, leads to the ops any more. */
  private isLeft(ops: FtraceOps): boolean {
    const { trampoline, lingering } = ops.state.value;
    return trampoline === undefined && lingering === 0 && !this.reconciler.isLinked(ops);
  }

  /** None for a direct ops, whose sites need none. */
  private makeTrampoline(ops: FtraceOps): CodeRange | undefined {
    if (ops.direct !== undefined) return undefined;
    return makeTrampoline(this.trampolines, templateFor([ops]), ops.struct.at, this.handlerOf(ops));
  }

  /** Who is called by a trampoline of the ops' own. */
  private handlerOf(ops: FtraceOps): Addr {
    return ops.has("FTRACE_OPS_FL_RECURSION") ? this.symbol("ftrace_ops_assist_func") : ops.func;
  }

  private symbol(name: string): Addr {
    return this.parts.image.symbol(name).address;
  }

  private set(to: Partial<Registry>): void {
    this.registry.value = { ...this.registry.value, ...to };
  }
}
