// Somebody who patches the kernel while its patients run, at random: patches that stack, replace, are turned round, forced and
// disabled. What is done when, the run's chooser says, so that it can be told again.

import { hexBytes } from "./base/bytes.ts";
import { type Chooser, FIRST } from "./base/chooser.ts";
import { readPackageFile } from "./base/file.ts";
import { Refusal } from "./base/refuse.ts";
import type { FtraceOps } from "./ftrace/ftrace.ts";
import { NOP5, SITE_SIZE } from "./ftrace/site.ts";
import { ERROR } from "./kernel/layout.ts";
import { readObject } from "./lab.ts";
import { CallbackOrder } from "./livepatch/callbackOrder.ts";
import type { LivepatchOptions } from "./livepatch/options.ts";
import type { ObjectSpec, Patch, StateSpec } from "./livepatch/patch.ts";
import { Universe } from "./livepatch/universe.ts";
import type { Patients } from "./patients.ts";
import type { ObjectFile } from "./x86/object.ts";

/** What is patched, by object: functions whose copies do the same. Callbacks of the one that comes and goes always agree. */
const TARGETS: Readonly<Record<string, readonly string[]>> = {
  vmlinux: ["vfs_read", "mem_read"],
  patients: ["foo", "use", "mix", "churn", "is_even", "is_odd", "forever"],
  visitor: ["visit"],
};
/** Functions that a task is in until it ends: whoever patches one waits for that. One in so many that are chosen. */
const RARE: Readonly<Record<string, number>> = { forever: 10 };
/** Patches whose prePatch does not agree, and those that change some state: one in so many. */
const UNWILLING = 10;
const STATEFUL = 4;
const STATES = 2;
const VERSIONS = 2;
/** Each a set of copies: as many patches there can be at a time. */
const COPIES = ["fix1", "fix2", "fix3", "fix4"];
const COPIED = ["asm/read.S", "kernel/patients.o", "kernel/visitor.o"];

/** One look in so many slices at whether to do something; and where that would have to wait for its turn. */
const SELDOM = 25;
const MORE_SELDOM = 250;
/** In nanoseconds. */
const RETRY_EVERY = 8_000;
const SIGNALS_TIMEOUT = 5;

export class Operator {
  private readonly patients: Patients;
  /** Who is called at some of the sites, and changes nothing: one with few registers, one with all. */
  private readonly tracers: readonly FtraceOps[];
  private chooser: Chooser = FIRST;
  private callbacks: CallbackOrder;

  /** Loads the copies. To be done before anything runs. */
  static async open(patients: Patients, options: LivepatchOptions = {}): Promise<Operator> {
    const { lab } = patients;
    for (const copy of COPIES) {
      const objects = await Promise.all(COPIED.map((path) => readObject(path, readPackageFile(path))));
      lab.modules.offer(copy, objects.map(asReplacement));
      lab.modules.insert(copy);
    }
    const tracers = [false, true].map((saveRegs) =>
      lab.ftrace.makeOps({ name: `tracer${saveRegs ? " with registers" : ""}`, handler: () => {}, saveRegs }),
    );
    lab.livepatch.options = { retryEvery: RETRY_EVERY, signalsTimeout: SIGNALS_TIMEOUT, ...options };
    return new Operator(patients, tracers);
  }

  private constructor(patients: Patients, tracers: readonly FtraceOps[]) {
    this.patients = patients;
    this.tracers = tracers;
    const { kernel, livepatch } = patients.lab;
    this.callbacks = new CallbackOrder(kernel, livepatch);
  }

  /** A new run, of which `chooser` decides; and what looks at it: the first thing that does not hold. */
  begin(chooser: Chooser): () => string | undefined {
    this.chooser = chooser;
    const { kernel, livepatch, code, modules } = this.patients.lab;
    const universe = new Universe({ kernel, livepatch, code, modules: () => modules.loaded });
    const callbacks = new CallbackOrder(kernel, livepatch);
    this.callbacks = callbacks;
    return () => callbacks.finding ?? universe.check();
  }

  /** Does something, now and then. */
  step(): void {
    const { livepatch } = this.patients.lab;
    if (this.chooser.choose("operator", livepatch.isBusy ? MORE_SELDOM : SELDOM) !== 0) return;
    try {
      this.act(this.pick(14));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  /** Asks for the last patch to be disabled, or a tracer to go, once nothing else is under way. */
  wind(): "asked" | "waits" | "over" {
    const { livepatch, kernel, ftrace } = this.patients.lab;
    if (!kernel.agenda.isEmpty) return "waits";
    const last = livepatch.patches.findLast(({ enabled }) => enabled);
    if (last !== undefined) {
      livepatch.disable(last);
      return "asked";
    }
    const tracer = this.tracers.find(({ isRegistered }) => isRegistered);
    if (tracer === undefined) return livepatch.patches.length === 0 ? "over" : "waits";
    ftrace.unregister(tracer);
    return "asked";
  }

  /** What is not as it was before the first patch, in text. */
  get leftover(): string | undefined {
    const { code, machine, ftrace, livepatch } = this.patients.lab;
    if (this.callbacks.leftover !== undefined) return this.callbacks.leftover;
    if (livepatch.stacks.all.size > 0) return "a function stack is left";
    if (ftrace.registered.length > 0) return `${ftrace.registered[0]} is registered yet`;
    for (const image of code.images) {
      const sites = new Set(image.mcountLocations);
      for (const { address, bytes, execute } of image.segments) {
        if (!execute) continue;
        const wanted = bytes.slice();
        for (const ip of sites)
          if (ip >= address && ip + SITE_SIZE <= address + bytes.length) wanted.set(NOP5, ip - address);
        const found = machine.memory.read(address, bytes.length);
        const at = found.findIndex((byte, n) => byte !== wanted[n]);
        if (at >= 0)
          return `text of ${image.name} is not as it was: ${hexBytes(found.subarray(at, at + 8))} at ${code.describe((address + at) as typeof address)}`;
      }
    }
    return undefined;
  }

  private act(which: number): void {
    const { livepatch } = this.patients.lab;
    const { transition, patches } = livepatch;
    switch (which) {
      case 0:
      case 1:
        if (transition !== undefined) livepatch.reverse(transition.patch);
        return;
      case 2:
        if (transition !== undefined) livepatch.signal();
        return;
      case 3:
        if (transition !== undefined && this.oneIn(isInTheWay(transition.patch) ? 2 : 8))
          livepatch.force(transition.patch);
        return;
      case 4:
      case 5:
      case 6: {
        const able = patches.filter(({ enabled }) => enabled);
        if (able.length > 0) livepatch.disable(able[this.pick(able.length)]!);
        return;
      }
      case 7:
        this.trace();
        return;
      case 8:
        this.unload();
        return;
      default:
        this.enable();
    }
  }

  /** Begins to trace some of what may be patched, or ends it: sites then have several to call. */
  private trace(): void {
    const { ftrace } = this.patients.lab;
    const tracer = this.tracers[this.pick(this.tracers.length)]!;
    if (tracer.isRegistered) {
      ftrace.unregister(tracer);
      return;
    }
    const known = new Set(ftrace.records.map(({ symbol }) => symbol));
    const names = Object.values(TARGETS).flat();
    const chosen = names.filter((name) => known.has(name) && this.oneIn(3));
    if (chosen.length === 0) return;
    ftrace.setFilter(tracer, chosen);
    ftrace.register(tracer);
  }

  /** Takes a module away that no patch has a use for, for some time. */
  private unload(): void {
    const { modules } = this.patients.lab;
    const idle = modules.loaded.filter(({ name, users }) => COPIES.includes(name) && users === 0);
    if (idle.length > 0) modules.remove(idle[this.pick(idle.length)]!.name);
  }

  private enable(): void {
    const { livepatch, code, modules } = this.patients.lab;
    const free = COPIES.filter((name) => !livepatch.patches.some((patch: Patch) => patch.name === name));
    if (free.length === 0) return;
    const name = free[this.pick(free.length)]!;
    if (!modules.loaded.some((module) => module.name === name)) modules.insert(name);
    const copy = code.images.find((image) => image.name === name)!;
    // On top of one another they are what is hardest.
    const patched = new Set([...livepatch.stacks.all.values()].map(({ site }) => site.symbol));
    const objects = Object.entries(TARGETS).flatMap(([object, functions]): ObjectSpec[] => {
      const chosen = functions.filter((func) => this.oneIn((patched.has(func) ? 2 : 3) * (RARE[func] ?? 1)));
      if (chosen.length === 0) return [];
      const specs = chosen.map((func) => ({ name: func, replacement: copy.symbol(func).address }));
      // Patients do not go on without their module.
      const isUnwilling = object !== "visitor" && this.oneIn(UNWILLING);
      const callbacks = this.callbacks.callbacks(isUnwilling ? ERROR.ENODEV : 0);
      return [{ name: object, functions: specs, callbacks }];
    });
    const states = this.oneIn(STATEFUL) ? this.states() : [];
    if (objects.length > 0) livepatch.enable({ name, objects, states, replace: this.oneIn(4) });
  }

  private states(): StateSpec[] {
    const ids = Array.from({ length: STATES }, (_, n) => n + 1).filter(() => this.oneIn(2));
    return ids.map((id) => ({ id, version: 1 + this.pick(VERSIONS) }));
  }

  private oneIn(count: number): boolean {
    return this.pick(count) === 0;
  }

  private pick(count: number): number {
    return count > 1 ? this.chooser.choose("operator", count) : 0;
  }
}

/** Whether somebody is in what the patch's transition would have him leave: then it matters whether it is forced. */
function isInTheWay(patch: Patch): boolean {
  return patch.blockers().some(({ reason }) => reason.kind === "on-stack");
}

/**
 * The same code, as what a live patch has for it: it calls, and works on, what the original does, and not copies of that. So what
 * others can refer to is looked for elsewhere.
 */
function asReplacement(file: ObjectFile): ObjectFile {
  const { symbols, sections } = file;
  const others = symbols.flatMap((symbol, own) =>
    symbol.binding === "global" && symbol.section !== null ? [{ own, symbol }] : [],
  );
  const indices = new Map(others.map(({ own }, n) => [own, symbols.length + n]));
  const elsewhere = others.map(({ symbol }) => ({ ...symbol, section: null, value: 0, size: 0 }));
  return {
    ...file,
    symbols: [
      ...symbols.map((symbol, n) => (indices.has(n) ? { ...symbol, binding: "local" as const } : symbol)),
      ...elsewhere,
    ],
    sections: sections.map((section) => ({
      ...section,
      relocations: !section.execute
        ? section.relocations
        : section.relocations.map((one) => ({ ...one, symbol: indices.get(one.symbol) ?? one.symbol })),
    })),
  };
}
