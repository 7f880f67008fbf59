// What has to hold while live patches come and go, by what is really on the stacks (machine.trueChain), and not by a walk.
//
// In a transition a task is in one universe or the other: it is in no body of a function that the other one has. Outside of one all
// are in the same: nobody is in a body that nothing leads to any more. Whoever is in a patch's module has it counted as needed. And
// while nothing is being done, what the guest has of functions and their sites is what the patches that are enabled want, by
// the names in the objects that are loaded. Where a transition is forced, what tasks were in then is theirs to end.

import { type Addr, offset } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { FTRACE_STRAND } from "../ftrace/reconcile.ts";
import { bytesOf } from "../ftrace/record.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import type { CodeMap } from "../image/codeMap.ts";
import { type Image, VMLINUX } from "../image/image.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import type { MODULE_STATE, PatchState } from "../kernel/layout.ts";
import type { TrueFrame } from "../machine/callChain.ts";
import type { FunctionStack } from "./functionStack.ts";
import type { Livepatch } from "./livepatch.ts";
import type { PatchFunction, Place } from "./patch.ts";

/** Code that a task must not be in. */
interface Body {
  readonly name: string;
  readonly low: Addr;
  readonly high: Addr;
}

/** What TypeScript keeps of live patches, for as long as none of it changes. */
interface Picture {
  readonly asOf: number;
  /** What does not fit the patches. */
  readonly mismatch: string | undefined;
  readonly stacks: readonly FunctionStack[];
  readonly sites: ReadonlySet<Addr>;
  /** What a task in a patch state must not be in. */
  readonly forbidden: Map<PatchState, readonly Body[]>;
  /** Tasks that were looked at since, and how they stood. */
  readonly seen: Map<Task, Stand>;
}

interface Stand {
  /** How often a CPU has begun with it: what it does between two of them leaves nothing else behind. */
  readonly switches: number;
  readonly state: number;
  readonly pid: number;
}

/** Where a task is executing, or is going to when what it has called returns. */
interface Position {
  /** undefined behind a site: where that goes on is not decided before its handler has. */
  readonly at: Addr | undefined;
  /** Where its function's return address lies: the same for as long as that call lasts. undefined: nothing called it. */
  readonly slot: Addr | undefined;
}

export interface UniverseParts {
  readonly kernel: Kernel;
  readonly livepatch: Livepatch;
  readonly code: CodeMap;
  /** Modules as the guest lists them. */
  readonly modules: () => readonly {
    readonly name: string;
    readonly state: keyof typeof MODULE_STATE;
    readonly users: number;
  }[];
}

export class Universe {
  private readonly parts: UniverseParts;
  private readonly kernel: Kernel;
  private readonly livepatch: Livepatch;
  /** Modules that have had patches. */
  private readonly carriers = new Set<Image>();
  /** By task, calls that were under way when a transition was forced. */
  private readonly pardoned = new Map<Task, ReadonlySet<Addr | undefined>>();
  /** How often that has happened. */
  private forces = 0;
  /** Of replacements that have gone: nobody comes back to them. */
  private readonly gone = new Map<Addr, Body>();
  private before: ReadonlyMap<Addr, Body> = new Map();
  private picture: Picture | undefined;

  constructor(parts: UniverseParts) {
    this.parts = parts;
    this.kernel = parts.kernel;
    this.livepatch = parts.livepatch;
  }

  /** The first thing that does not hold. */
  check(): string | undefined {
    const { livepatch, kernel } = this;
    const { stacks, sites, forbidden, seen, mismatch } = this.look();
    if (mismatch !== undefined) return mismatch;
    if (kernel.machine.memory.readInt(kernel.klpWarned) !== 0)
      return "a function was in transition for a task without a patch state";
    if (this.pardon(sites) || (stacks.length === 0 && this.gone.size === 0)) return undefined;
    for (const task of livepatch.tasks.all) {
      if (isSeen(task, seen) || this.isSwitching(task)) continue;
      const state = kernel.patchState(task);
      let bodies = forbidden.get(state);
      if (bodies === undefined) {
        bodies = [...stacks.flatMap((stack) => this.forbidden(stack, state)), ...this.gone.values()];
        forbidden.set(state, bodies);
      }
      const wrong = this.checkTask(task, this.positions(task, sites), bodies);
      if (wrong !== undefined) return `${task} (${state}) ${wrong}`;
    }
    return undefined;
  }

  private checkTask(task: Task, positions: readonly Position[], bodies: readonly Body[]): string | undefined {
    const { code, modules } = this.parts;
    const slots = this.pardoned.get(task);
    if (slots !== undefined)
      this.pardoned.set(task, new Set(positions.map(({ slot }) => slot).filter((slot) => slots.has(slot))));
    for (const { at, slot } of positions) {
      if (at === undefined) continue;
      const body = bodies.find(({ low, high }) => at >= low && at < high);
      if (body !== undefined && slots?.has(slot) !== true) return `is in ${body.name}: ${code.describe(at)}`;
      const carrier = this.carriers.size === 0 ? undefined : code.imageAt(at);
      if (carrier === undefined || !this.carriers.has(carrier)) continue;
      const users = modules().find(({ name }) => name === carrier.name)?.users ?? 0;
      if (users === 0) return `is in ${carrier.name}, which nobody needs: ${code.describe(at)}`;
    }
    return undefined;
  }

  /**
   * Whether a transition has been forced since the last look without one: what tasks are in now they may be in for as long as that
   * lasts, wherever it is.
   */
  private pardon(sites: ReadonlySet<Addr>): boolean {
    const { forces, transition, tasks } = this.livepatch;
    if (forces === this.forces) return false;
    const known = tasks.all.filter((task) => !this.isSwitching(task));
    for (const task of known)
      this.pardoned.set(task, new Set(this.positions(task, sites).map(({ slot }) => slot)));
    if (transition === undefined && known.length === tasks.all.length) this.forces = forces;
    return true;
  }

  private look(): Picture {
    const { changes } = this.kernel.machine.keeper;
    if (this.picture?.asOf === changes) return this.picture;
    this.note();
    const stacks = [...this.livepatch.stacks.all.values()];
    const sites = new Set(stacks.map(({ site }) => site.ip));
    const mismatch = this.incompatible() ?? this.mismatch();
    this.picture = { asOf: changes, mismatch, stacks, sites, forbidden: new Map(), seen: new Map() };
    return this.picture;
  }

  /** Two patches of which the later one must not have come on top of the other: it knows too little of a state. */
  private incompatible(): string | undefined {
    const { patches } = this.livepatch;
    for (const [n, later] of patches.entries())
      for (const earlier of patches.slice(0, n))
        for (const { id, version } of earlier.states) {
          const known = later.state(id)?.version ?? (later.replace ? 0 : version);
          if (known < version)
            return `${later} is enabled, and knows too little of state ${id} of ${earlier}`;
        }
    return undefined;
  }

  /** What is not as the patches want it, in guest memory or here, while nothing is being done about it. */
  private mismatch(): string | undefined {
    const { livepatch, kernel } = this;
    const { memory } = kernel.machine;
    if (livepatch.isBusy || livepatch.transition !== undefined || kernel.agenda.isPending(FTRACE_STRAND))
      return undefined;
    const loaded = this.loaded();
    const wanted = this.wanted(loaded);
    for (const [old, { site, ops, original, functions }] of livepatch.stacks.all) {
      if (!loaded.has(site.module)) continue; // it is coming, or going
      const want = wanted.get(old) ?? [];
      wanted.delete(old);
      if (functions.length !== want.length || functions.some((func, n) => func !== want[n]))
        return `the stack of ${site.symbol} has other functions than the patches`;
      let at = ops.struct.getNumber("private");
      for (const { struct, replacement } of functions) {
        if (at !== struct.at) return `the guest's stack of ${site.symbol} leads elsewhere`;
        if (struct.getNumber("new_func") !== replacement)
          return `a function of ${site.symbol} is not its replacement`;
        if (struct.getNumber("transition") !== 0) return `a function of ${site.symbol} is in transition yet`;
        at = struct.getNumber("next");
      }
      if (at !== original.at) return `the guest's stack of ${site.symbol} does not end with the original`;
      if (
        site.target.kind === "nop" ||
        !sameBytes(memory.read(site.ip, SITE_SIZE), bytesOf(site.ip, site.target))
      )
        return `the site of ${site.symbol} does not lead to its functions`;
    }
    const [missing] = [...wanted.values()].flat();
    return missing && `${missing.name} is patched, and on no stack`;
  }

  /** The kernel, and modules that are neither coming nor going. */
  private loaded(): ReadonlyMap<string, Image> {
    const { code, modules } = this.parts;
    const names = new Set([
      VMLINUX,
      ...modules().flatMap(({ name, state }) => (state === "MODULE_STATE_LIVE" ? [name] : [])),
    ]);
    return new Map(code.images.filter(({ name }) => names.has(name)).map((image) => [image.name, image]));
  }

  /** What the patches replace, by the names of functions: the latest patch first. */
  private wanted(loaded: ReadonlyMap<string, Image>): Map<Addr, readonly PatchFunction[]> {
    const wanted = new Map<Addr, readonly PatchFunction[]>();
    for (const { objects } of this.livepatch.patches)
      for (const { name, functions } of objects)
        for (const func of functions) {
          const named = loaded.get(name)?.named(func.name) ?? [];
          const old = named.filter(({ kind }) => kind === "func")[Math.max(0, func.sympos - 1)]?.address;
          if (old !== undefined) wanted.set(old, [func, ...(wanted.get(old) ?? [])]);
        }
    return wanted;
  }

  /** Which replacements have gone since the last look. */
  private note(): void {
    const { patches, transition } = this.livepatch;
    const { code } = this.parts;
    const now = new Map<Addr, Body>();
    for (const { name, functions } of patches)
      for (const func of functions) {
        if (func.place === undefined || func.isNop) continue;
        const carrier = code.imageAt(func.place.new);
        if (carrier !== undefined && carrier.name !== VMLINUX) this.carriers.add(carrier);
        now.set(func.place.new, bodyOf(`${func.name} of ${name}, which is gone`, func.place));
      }
    for (const [at, body] of this.before) if (!now.has(at)) this.gone.set(at, body);
    for (const at of now.keys()) this.gone.delete(at);
    if (transition === undefined || this.before.size !== now.size) this.before = now;
  }

  /** The bodies of one function that a task in `state` must not be in. */
  private forbidden({ functions, site }: FunctionStack, state: PatchState): Body[] {
    const [top] = functions;
    if (top?.place === undefined) return [];
    // By what was asked for, whatever guest memory says of it.
    const isInTransition = this.livepatch.transition?.patch.functions.includes(top) === true;
    if (isInTransition && state === "KLP_UNDEFINED") return [];
    const own = functions[isInTransition && state === "KLP_UNPATCHED" ? 1 : 0];
    const original: Body = {
      name: `the original ${site.symbol}`,
      low: offset(site.ip, SITE_SIZE),
      high: offset(top.place.old, top.place.oldSize),
    };
    const isOriginal = own === undefined || own.isNop;
    const others = functions.filter((func) => func !== own && !func.isNop);
    return [
      ...(isOriginal ? [] : [original]),
      ...others.map((func) => bodyOf(`a replacement of ${site.symbol}`, func.place!)),
    ];
  }

  /** In the middle of a switch the stack is the next task's before `current` is; interrupts may come there. */
  private isSwitching(task: Task): boolean {
    const { kernel } = this;
    if (!task.onCpu) return false;
    const vcpu = kernel.machine.vcpus.find((one) => kernel.current(one) === task);
    return vcpu === undefined || kernel.cpus[vcpu.index]!.struct.getNumber("prev") !== 0;
  }

  /** Where the task is, and everything that it returns to, but for what a handler has not decided yet. */
  private positions(task: Task, sites: ReadonlySet<Addr>): Position[] {
    const { kernel } = this;
    const { machine } = kernel;
    if (task.hasEnded) return [];
    if (!task.onCpu) {
      const start = kernel.startOf(task);
      if (start === undefined) return [];
      return this.along(machine.trueChain(start.from === "unstarted" ? start.sp : start.slot), sites);
    }
    const vcpu = machine.vcpus.find((one) => kernel.current(one) === task);
    if (vcpu === undefined || vcpu.system.user) return [];
    return this.along(machine.trueChain(vcpu.rsp), sites, vcpu.rip);
  }

  /** From the frame further out on: each function's return address is the frame that it is called from. */
  private along(chain: readonly TrueFrame[], sites: ReadonlySet<Addr>, ip?: Addr): Position[] {
    const found: Position[] = [];
    let slot: Addr | undefined;
    for (const frame of chain.toReversed()) {
      found.push({ at: this.returnsTo(frame, sites), slot });
      if (frame.kind === "call") ({ slot } = frame);
    }
    if (ip !== undefined) found.push({ at: ip, slot });
    return found.reverse();
  }

  private returnsTo(frame: TrueFrame, sites: ReadonlySet<Addr>): Addr | undefined {
    if (frame.kind === "interrupt") return frame.user ? undefined : frame.ip;
    if (frame.call === undefined || !sites.has(frame.call)) return frame.returnAddress;
    const to = this.kernel.machine.memory.readNumber(frame.slot) as Addr;
    return to === frame.returnAddress ? undefined : to;
  }
}

/** Whether the task has stood still since it was looked at: on no CPU, and in the same state. */
function isSeen(task: Task, seen: Map<Task, Stand>): boolean {
  if (task.onCpu) {
    seen.delete(task);
    return false;
  }
  const { struct } = task;
  const [switches, state, pid] = [
    struct.getNumber("switches"),
    struct.getNumber("patch_state"),
    struct.getNumber("pid"),
  ];
  const before = seen.get(task);
  if (before?.switches === switches && before.state === state && before.pid === pid) return true;
  seen.set(task, { switches, state, pid });
  return false;
}

function bodyOf(name: string, { new: low, newSize }: Place): Body {
  return { name, low, high: offset(low, newSize) };
}
