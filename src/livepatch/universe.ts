// What has to hold while live patches come and go, by what is really on the stacks (machine.trueChain), and not by a walk.
//
// In a transition a task is in one universe or the other: it is in no body of a function that the other one has. Outside of one all
// are in the same: nobody is in a body that nothing leads to any more. And while nothing is being done, what the guest has of functions
// and their sites is what the patches that are enabled want.

import { type Addr, offset } from "../base/addr.ts";
import { sameBytes } from "../base/bytes.ts";
import { FTRACE_STRAND } from "../ftrace/ftrace.ts";
import { bytesOf } from "../ftrace/record.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import type { Kernel, Task } from "../kernel/kernel.ts";
import type { PatchState } from "../kernel/layout.ts";
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
  readonly sp: number;
  readonly state: number;
  readonly pid: number;
}

export class Universe {
  private readonly kernel: Kernel;
  private readonly livepatch: Livepatch;
  private readonly describe: (at: Addr) => string;
  /** Of replacements that have gone: nobody comes back to them. */
  private readonly gone = new Map<Addr, Body>();
  private before: ReadonlyMap<Addr, Body> = new Map();
  private picture: Picture | undefined;

  constructor(kernel: Kernel, livepatch: Livepatch, describe: (at: Addr) => string) {
    this.kernel = kernel;
    this.livepatch = livepatch;
    this.describe = describe;
  }

  /** The first thing that does not hold. */
  check(): string | undefined {
    const { livepatch, kernel } = this;
    const { stacks, sites, forbidden, seen, mismatch } = this.look();
    if (mismatch !== undefined) return mismatch;
    if (livepatch.forces > 0) return undefined; // tasks may be anywhere from then on
    if (kernel.machine.memory.readInt(kernel.klpWarned) !== 0)
      return "a function was in transition for a task without a patch state";
    if (stacks.length === 0 && this.gone.size === 0) return undefined;
    for (const task of livepatch.tasks.all) {
      if (isSeen(task, seen)) continue;
      const state = kernel.patchState(task);
      let bodies = forbidden.get(state);
      if (bodies === undefined) {
        bodies = [...stacks.flatMap((stack) => this.forbidden(stack, state)), ...this.gone.values()];
        forbidden.set(state, bodies);
      }
      if (bodies.length === 0) continue;
      for (const at of this.addresses(task, sites)) {
        const body = bodies.find(({ low, high }) => at >= low && at < high);
        if (body !== undefined) return `${task} (${state}) is in ${body.name}: ${this.describe(at)}`;
      }
    }
    return undefined;
  }

  private look(): Picture {
    const { changes } = this.kernel.machine.keeper;
    if (this.picture?.asOf === changes) return this.picture;
    this.note();
    const stacks = [...this.livepatch.stacks.all.values()];
    const sites = new Set(stacks.map(({ site }) => site.ip));
    const mismatch = this.mismatch();
    this.picture = { asOf: changes, mismatch, stacks, sites, forbidden: new Map(), seen: new Map() };
    return this.picture;
  }

  /** What is not as the patches want it, in guest memory or here, while nothing is being done about it. */
  private mismatch(): string | undefined {
    const { livepatch, kernel } = this;
    const { memory } = kernel.machine;
    if (livepatch.isBusy || livepatch.transition !== undefined || kernel.agenda.isPending(FTRACE_STRAND))
      return undefined;
    const wanted = new Map<Addr, readonly PatchFunction[]>();
    for (const { functions } of livepatch.patches)
      for (const func of functions)
        if (func.place !== undefined)
          wanted.set(func.place.old, [func, ...(wanted.get(func.place.old) ?? [])]);
    for (const [old, { site, ops, original, functions }] of livepatch.stacks.all) {
      const want = wanted.get(old) ?? [];
      wanted.delete(old);
      if (functions.length !== want.length || functions.some((func, n) => func !== want[n]))
        return `the stack of ${site.symbol} has other functions than the patches`;
      let at = ops.struct.getNumber("private");
      for (const { struct } of functions) {
        if (at !== struct.at) return `the guest's stack of ${site.symbol} leads elsewhere`;
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

  /** Which replacements have gone since the last look. */
  private note(): void {
    const { patches, transition } = this.livepatch;
    const now = new Map<Addr, Body>();
    for (const { name, functions } of patches)
      for (const func of functions)
        if (func.place !== undefined && !func.isNop)
          now.set(func.place.new, bodyOf(`${func.name} of ${name}, which is gone`, func.place));
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

  /** Where the task is, and everything that it returns to, but for what a handler has not decided yet. */
  private addresses(task: Task, sites: ReadonlySet<Addr>): Addr[] {
    const { kernel } = this;
    const { machine } = kernel;
    if (!task.onCpu) {
      const start = kernel.startOf(task);
      if (start === undefined) return [];
      return this.of(machine.trueChain(start.from === "unstarted" ? start.sp : start.slot), sites);
    }
    const vcpu = machine.vcpus.find((one) => kernel.current(one) === task);
    if (vcpu === undefined || vcpu.system.user) return [];
    // In the middle of a switch the stack is the next task's before `current` is; interrupts may come there.
    if (kernel.cpus[vcpu.index]!.struct.getNumber("prev") !== 0) return [];
    const frames = this.of(machine.trueChain(vcpu.rsp), sites);
    // Behind a site that is being rewritten, or was a NOP, nothing was decided.
    return [vcpu.rip, ...frames];
  }

  private of(chain: readonly TrueFrame[], sites: ReadonlySet<Addr>): Addr[] {
    const { memory } = this.kernel.machine;
    return chain.flatMap((frame) => {
      if (frame.kind === "interrupt") return frame.user ? [] : [frame.ip];
      if (frame.call === undefined || !sites.has(frame.call)) return [frame.returnAddress];
      const to = memory.readNumber(frame.slot) as Addr;
      return to === frame.returnAddress ? [] : [to];
    });
  }
}

/** Whether the task has stood still since it was looked at: on no CPU, and in the same state. */
function isSeen(task: Task, seen: Map<Task, Stand>): boolean {
  if (task.onCpu) {
    seen.delete(task);
    return false;
  }
  const { struct } = task;
  const [sp, state, pid] = [struct.getNumber("sp"), struct.getNumber("patch_state"), struct.getNumber("pid")];
  const before = seen.get(task);
  if (before !== undefined && before.sp === sp && before.state === state && before.pid === pid) return true;
  seen.set(task, { sp, state, pid });
  return false;
}

function bodyOf(name: string, { new: low, newSize }: Place): Body {
  return { name, low, high: offset(low, newSize) };
}
