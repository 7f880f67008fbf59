// Somebody who patches the kernel while its patients run, at random: patches that stack, replace, are turned round, forced and
// disabled. What is done when, the run's chooser says, so that it can be told again.

import { hexBytes } from "./base/bytes.ts";
import { type Chooser, FIRST } from "./base/chooser.ts";
import { readPackageFile } from "./base/file.ts";
import { Refusal } from "./base/refuse.ts";
import { NOP5, SITE_SIZE } from "./ftrace/site.ts";
import { readObject } from "./lab.ts";
import type { LivepatchOptions } from "./livepatch/options.ts";
import type { ObjectSpec, Patch } from "./livepatch/patch.ts";
import { Universe } from "./livepatch/universe.ts";
import type { Patients } from "./patients.ts";

/** What is patched, by object: functions whose copies do the same. */
const TARGETS: Readonly<Record<string, readonly string[]>> = {
  vmlinux: ["vfs_read", "mem_read"],
  patients: ["foo", "use", "mix", "is_even", "is_odd"],
  visitor: ["visit"],
};
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
  private chooser: Chooser = FIRST;

  /** Loads the copies. To be done before anything runs. */
  static async open(patients: Patients, options: LivepatchOptions = {}): Promise<Operator> {
    const { lab } = patients;
    for (const copy of COPIES) {
      const objects = await Promise.all(COPIED.map((path) => readObject(path, readPackageFile(path))));
      lab.modules.offer(
        copy,
        objects.map((object) => ({ ...object })),
      );
      lab.modules.insert(copy);
    }
    lab.livepatch.options = { retryEvery: RETRY_EVERY, signalsTimeout: SIGNALS_TIMEOUT, ...options };
    return new Operator(patients);
  }

  private constructor(patients: Patients) {
    this.patients = patients;
  }

  /** A new run, of which `chooser` decides. */
  begin(chooser: Chooser): Universe {
    this.chooser = chooser;
    const { kernel, livepatch, code } = this.patients.lab;
    return new Universe(kernel, livepatch, (at) => code.describe(at));
  }

  /** Does something, now and then. */
  step(): void {
    const { livepatch } = this.patients.lab;
    if (this.chooser.choose("operator", livepatch.isBusy ? MORE_SELDOM : SELDOM) !== 0) return;
    try {
      this.act(this.chooser.choose("operator", 12));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
    }
  }

  /** Asks for the last patch to be disabled, once nothing else is under way. */
  wind(): "asked" | "waits" | "over" {
    const { livepatch, kernel } = this.patients.lab;
    if (!kernel.agenda.isEmpty) return "waits";
    const last = livepatch.patches.findLast(({ enabled }) => enabled);
    if (last === undefined) return livepatch.patches.length === 0 ? "over" : "waits";
    livepatch.disable(last);
    return "asked";
  }

  /** What is not as it was before the first patch, in text. */
  get leftover(): string | undefined {
    const { code, machine, ftrace, livepatch } = this.patients.lab;
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
        if (transition !== undefined && this.chooser.choose("operator", 8) === 0)
          livepatch.force(transition.patch);
        return;
      case 4:
      case 5:
      case 6: {
        const able = patches.filter(({ enabled }) => enabled);
        if (able.length > 0) livepatch.disable(able[this.pick(able.length)]!);
        return;
      }
      default:
        this.enable();
    }
  }

  private enable(): void {
    const { livepatch, code } = this.patients.lab;
    const free = COPIES.filter((name) => !livepatch.patches.some((patch: Patch) => patch.name === name));
    if (free.length === 0) return;
    const name = free[this.pick(free.length)]!;
    const copy = code.images.find((image) => image.name === name)!;
    const objects = Object.entries(TARGETS).flatMap(([object, functions]): ObjectSpec[] => {
      const chosen = functions.filter(() => this.chooser.choose("operator", 3) === 0);
      if (chosen.length === 0) return [];
      const specs = chosen.map((func) => ({ name: func, replacement: copy.symbol(func).address }));
      return [{ ...(object === "vmlinux" ? {} : { name: object }), functions: specs }];
    });
    if (objects.length > 0)
      livepatch.enable({ name, objects, replace: this.chooser.choose("operator", 4) === 0 });
  }

  private pick(count: number): number {
    return count > 1 ? this.chooser.choose("operator", count) : 0;
  }
}
