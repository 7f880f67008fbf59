// The laboratory: a machine with the guest kernel loaded, its call sites recorded, and tasks to run it.

import { type Addr, addr, PAGE_SIZE } from "./base/addr.ts";
import { readInput, readPackageFile } from "./base/file.ts";
import { refuse } from "./base/refuse.ts";
import { Ftrace, type FtraceRecord } from "./ftrace/ftrace.ts";
import { includeGuestSource, KERNEL_PARTS } from "./guest.ts";
import { CodeMap } from "./image/codeMap.ts";
import { parseElf } from "./image/elf.ts";
import type { Image } from "./image/image.ts";
import { DIRECT_MAP, KERNEL_TEXT, MODULE_TEXT, USER_TEXT } from "./image/layout.ts";
import { link } from "./image/link.ts";
import { load } from "./image/load.ts";
import type { ImageSymbol } from "./image/symbolTable.ts";
import { Conductor, type ConductorOptions } from "./kernel/conductor.ts";
import { Dumper } from "./kernel/dump.ts";
import { type InvariantOptions, Invariants } from "./kernel/invariants.ts";
import { Kernel, type Task } from "./kernel/kernel.ts";
import { OopsWriter } from "./kernel/oops.ts";
import { grace, holder, serialiseAll } from "./kernel/quiescence.ts";
import { liveStart, type UnwindingParts } from "./kernel/unwindContext.ts";
import { Livepatch } from "./livepatch/livepatch.ts";
import type { Patch, PatchSpec } from "./livepatch/patch.ts";
import { Redirect } from "./livepatch/redirect.ts";
import type { Request } from "./livepatch/request.ts";
import { Sysfs } from "./livepatch/sysfs.ts";
import { Agenda, until } from "./machine/agenda.ts";
import { describeExit, type Exit } from "./machine/exit.ts";
import { Heap } from "./machine/heap.ts";
import { Machine } from "./machine/machine.ts";
import { Pool } from "./machine/pool.ts";
import type { CodeVisibility } from "./machine/staleCode.ts";
import type { Vcpu } from "./machine/vcpu.ts";
import { Modules } from "./modules.ts";
import { adviseExit } from "./report/advice.ts";
import { framePointerUnwinder } from "./unwind/framePointer.ts";
import { OrcTables } from "./unwind/orc/tables.ts";
import { orcUnwinder } from "./unwind/orcWalker.ts";
import type { Unwinder, Walk } from "./unwind/walk.ts";
import { loadAssembler } from "./x86/assemble.ts";
import type { ObjectFile } from "./x86/object.ts";

export interface LabOptions {
  /** How many vCPUs; default 1. */
  readonly vcpus?: number;
  /** Record every call and return, for `trueStack`; default false. */
  readonly recordCalls?: boolean;
  /** Objects linked into the kernel besides `asm/`, as paths of .o and .S files. */
  readonly objects?: readonly string[];
  /** Changes a source of the kernel before it is assembled, to see what comes of it; `name` is its file in `asm/`. */
  readonly edit?: (name: string, text: string) => string;
  /** Contents in place of the kernel's own parts, by their paths in this package (guest.ts). */
  readonly parts?: ReadonlyMap<string, Uint8Array>;
  /** How vCPUs see stores to code that others made; default `coherent`. */
  readonly code?: CodeVisibility;
  /** Compile hot code; default true (MachineOptions). */
  readonly compile?: boolean;
  /** How many tasks there can be at a time; default 1024. */
  readonly maxTasks?: number;
}

/** The path of a .o or .S file; or assembly itself, with a name for messages. */
export type Source = string | { readonly name: string; readonly assembly: string };

export interface CallOptions {
  /** Default: the laboratory's first task. */
  readonly task?: Task;
  /** Default: the first vCPU. */
  readonly vcpu?: Vcpu;
  /** Instructions after which the call is given up; default ten million. */
  readonly budget?: number;
}

export interface CallResult {
  /** rax as the function left it. */
  readonly result: bigint;
  /** Retired from the function's first instruction to its return, which are both counted. */
  readonly instructions: number;
}

/** Where functions return to whose return address was replaced (asm/return.S). */
const RETURN_TRAMPOLINES = ["return_to_handler", "rethook_trampoline"];
const DEFAULT_BUDGET = 10_000_000;
const OVERFLOW = "its stack overflowed: look for endless recursion";
/** What `lab_call` executes besides the function: xor, call, vmcall. */
const CALLER_INSTRUCTIONS = 3;
/** Trampolines and modules share module space; modules grow up from its start. */
const TRAMPOLINES = addr(MODULE_TEXT + 0x1000_0000);

export class Lab {
  readonly machine: Machine;
  readonly image: Image;
  readonly code: CodeMap;
  readonly orc: OrcTables;
  readonly kernel: Kernel;
  readonly modules: Modules;
  readonly ftrace: Ftrace;
  readonly livepatch: Livepatch;
  /** What administrators see of it, and write to. */
  readonly sysfs: Sysfs;
  private readonly heap: Heap;
  /** What walkers may ask of this system. */
  readonly unwinding: UnwindingParts & { readonly code: CodeMap };
  /** Shows stacks as the kernel's messages do. */
  readonly dumper: Dumper;

  /** Assembles, links and boots the guest kernel. */
  static async open(options: LabOptions = {}): Promise<Lab> {
    const sources = await Promise.all(
      KERNEL_PARTS.map((path) => {
        const bytes = options.parts?.get(path) ?? readPackageFile(path);
        if (options.edit === undefined || !path.startsWith("asm/")) return readObject(path, bytes);
        const text = options.edit(path.slice("asm/".length), new TextDecoder().decode(bytes));
        return readObject(path, new TextEncoder().encode(text));
      }),
    );
    const extra = await Promise.all((options.objects ?? []).map((path) => readObject(path, readInput(path))));
    return new Lab(link([...sources, ...extra], { text: KERNEL_TEXT }), options);
  }

  private constructor(image: Image, options: LabOptions) {
    const { vcpus = 1, recordCalls = false, code: visibility = "coherent", compile = true } = options;
    this.image = image;
    this.machine = new Machine({ vcpus, recordCalls, code: visibility, compile });
    const { memory, keeper } = this.machine;
    this.code = new CodeMap(keeper);
    this.orc = new OrcTables(this.code);
    load(memory, image);
    this.code.addImage(image);
    this.heap = new Heap(memory, DIRECT_MAP, { write: true, execute: false, user: false });
    const cursor = this.heap.allocate(8);
    const text = new Heap(memory, TRAMPOLINES, { write: false, execute: true, user: false }, cursor);
    const { code, heap } = this;
    const agenda = new Agenda(keeper);
    this.ftrace = new Ftrace({
      ...{ image, memory, code, heap, text, keeper, agenda },
      serialise: () => serialiseAll(this.kernel, agenda),
      holder: (low, high) => holder(this.kernel, low, high),
      grace: () => grace(this.kernel),
      print: (line) => this.kernel.log.print(line),
    });
    this.modules = new Modules({ memory, heap, code, ftrace: this.ftrace, kernel: image, agenda, keeper });
    this.kernel = new Kernel(this.machine, heap, image, {
      ...options,
      agenda,
      modules: this.modules,
      traceHandler: (call) => this.ftrace.handle(call),
    });
    this.livepatch = new Livepatch({
      ...{ kernel: this.kernel, ftrace: this.ftrace, code, pool: new Pool(heap, keeper) },
      contextOf: (task) => this.kernel.unwindContext(task, this.unwinding),
      walkOfCurrent: (task) => this.walkOfCurrent(task),
      grace: () => grace(this.kernel),
      isModule: (name) => this.modules.has(name),
      use: (module, by) => this.modules.use(module, by),
      handler: image.symbol("klp_ftrace_handler").address,
      serialise: () => serialiseAll(this.kernel, agenda),
    });
    this.sysfs = new Sysfs({ livepatch: this.livepatch, ftrace: this.ftrace, kernel: this.kernel });
    this.kernel.livepatch = {
      notify: (module) => this.notify(module),
      notified: (module) => this.livepatch.notified(module),
      trySwitch: (task) => this.livepatch.trySwitchCurrent(task),
    };
    this.modules.livepatch = this.kernel.livepatch;
    for (let n = 0; n < vcpus; n++) this.kernel.createTask();
    const { returnTrampolines } = this.machine.calls;
    for (const name of RETURN_TRAMPOLINES) returnTrampolines.add(image.symbol(name).address);
    this.unwinding = { memory, code: this.code, orc: this.orc, returnTrampolines };
    this.dumper = new Dumper(this.kernel, this.unwinding);
  }

  /** Links objects against one another and what is loaded, and loads them into module space as module `name`. */
  async loadModule(name: string, sources: readonly Source[]): Promise<Image> {
    await this.offerModule(name, sources);
    return this.modules.insert(name);
  }

  /** The same without loading it: guest code can, by its name (kernel/module.c). */
  async offerModule(name: string, sources: readonly Source[]): Promise<Image> {
    return this.modules.offer(name, await Promise.all(sources.map(readSource)));
  }

  /**
   * Makes a module of the patch's name from `sources`, in which replacements can be named, loads it, and enables the patch. If
   * that is refused, both are as if they had never been. The module stays when the patch goes, until it is removed.
   */
  async patch(spec: PatchSpec, sources: readonly Source[]): Promise<Patch> {
    const { modules, livepatch } = this;
    await this.loadModule(spec.name, sources);
    try {
      return livepatch.enable(spec);
    } catch (error) {
      // Behind what the patch itself gives back.
      this.kernel.agenda.add(`free ${spec.name}`, modules.discard(spec.name));
      throw error;
    }
  }

  /**
   * The opposite: disables the patch and, once it is gone, removes and withdraws the module that `patch` has made for it, so that
   * another one of that name can come. A module that something else needs, or that a forced transition was left with, stays.
   */
  unpatch(patch: Patch): Request {
    const { livepatch, modules, kernel } = this;
    const request = livepatch.disable(patch);
    const isThere = () => livepatch.patches.includes(patch);
    // Or refused, or turned round: then it stays.
    const isOver = () =>
      !isThere() ||
      request.refusal !== undefined ||
      (request.state.kind === "taken" && patch.enabled && livepatch.transition?.patch !== patch);
    const isFree = () => modules.loaded.some(({ name, users }) => name === patch.name && users === 0);
    kernel.agenda.add(`discard ${patch}`, [
      {
        what: `wait until ${patch} is gone`,
        ready: isOver,
        run: () =>
          isThere() || patch.forced
            ? undefined
            : [until(`nobody needs ${patch}'s module`, isFree), ...modules.discard(patch.name)],
      },
    ]);
    return request;
  }

  /**
   * Links objects as a program of a user's and maps it where user code can have it. It is no part of the kernel's code: no
   * address of it is one that a walk may return to. `kernel.createUserTask` runs it.
   */
  async loadProgram(name: string, paths: readonly string[]): Promise<Image> {
    const objects = await Promise.all(paths.map((path) => readObject(path, readInput(path))));
    const image = link(objects, { text: USER_TEXT, name });
    load(this.machine.memory, image, true);
    return image;
  }

  /** A symbol of the kernel, else of a module. Refuses names that nothing loaded has. */
  symbol(name: string): ImageSymbol {
    for (const image of this.code.images) if (image.find(name) !== undefined) return image.symbol(name);
    return this.image.symbol(name); // refuses, and suggests
  }

  /** Prepares `name` to be redirected to the function at `replacement`. */
  redirect(name: string, replacement: Addr): Redirect {
    return this.redirectSite(this.ftrace.siteOf(this.symbol(name).address, name), replacement);
  }

  /** The same for a site, where a name says too little. */
  redirectSite(site: FtraceRecord, replacement: Addr): Redirect {
    const { ftrace, heap } = this;
    const handler = this.image.symbol("klp_ftrace_handler").address;
    return new Redirect({ ftrace, memory: this.machine.memory, heap, handler }, site, replacement);
  }

  /** `size` zeroed bytes of kernel memory, never given back. */
  allocate(size: number): Addr {
    return this.heap.allocate(size);
  }

  /** Puts `task` at the start of a call to the function at `target`; run the vCPU and then `finish`. */
  begin(target: Addr, args: readonly bigint[], { task, vcpu }: CallOptions = {}): Vcpu {
    const on = vcpu ?? this.machine.vcpus[0]!;
    this.kernel.begin(on, task ?? this.kernel.tasks[on.index]!, target, args);
    return on;
  }

  /** Runs a call that was begun to its end. Refuses one that faults, or does not end within its budget. */
  finish(vcpu: Vcpu, budget = DEFAULT_BUDGET): bigint {
    const end = this.kernel.run(vcpu, { budget });
    if (end.kind === "panic")
      refuse("call-failed", { what: end.text, advice: "look at what it was called with" });
    if (!this.kernel.returned(end)) {
      const taken = this.kernel.exception(vcpu, end);
      const exit: Exit = taken === undefined ? end : { kind: "fault", ip: taken.ip, fault: taken.fault };
      const advice = this.overflowed(vcpu, exit) ? OVERFLOW : adviseExit(exit);
      refuse("call-failed", { what: this.describe(exit), advice });
    }
    this.kernel.agenda.finish(); // what has waited for it
    return vcpu.get("rax");
  }

  /** Calls a guest function, by name or address, and sees it through. */
  call(
    target: string | Addr,
    args: readonly (bigint | number)[] = [],
    options: CallOptions = {},
  ): CallResult {
    const at = typeof target === "string" ? this.symbol(target).address : target;
    const vcpu = this.begin(at, args.map(BigInt), options);
    const before = vcpu.instructions;
    const result = this.finish(vcpu, options.budget);
    return { result, instructions: vcpu.instructions - before - CALLER_INSTRUCTIONS };
  }

  /** A walk from a vCPU's registers, over the stacks of the task that runs on it. */
  walk(vcpu: Vcpu, unwinder: Unwinder = framePointerUnwinder): Walk {
    return unwinder.walk(this.kernel.unwindContextOf(vcpu, this.unwinding), liveStart(vcpu));
  }

  /** Where the task is that a CPU executes, which stands still, and where it came from; undefined if none does. */
  private walkOfCurrent(task: Task): Walk | undefined {
    const vcpu = this.machine.vcpus.find((one) => this.kernel.current(one) === task);
    if (vcpu === undefined) return undefined;
    if (vcpu.system.user) return { frames: [], doubt: null }; // the kernel's stack begins anew
    const { frames, doubt } = this.walk(vcpu, orcUnwinder);
    return { frames: [{ kind: "interrupted", address: vcpu.rip, slot: vcpu.rsp }, ...frames], doubt };
  }

  /** Tells live patching of a module that is coming or going. */
  private notify(module: Addr): void {
    const found = this.modules.at(module);
    if (found !== undefined) this.livepatch.notify(module, found.image, found.state !== "MODULE_STATE_GOING");
  }

  /** The return addresses that are really live on the vCPU's stack, innermost first. Needs `recordCalls`. */
  trueReturns(vcpu: Vcpu): Addr[] {
    return this.machine
      .trueStack(vcpu.rsp)
      .flatMap((frame) => (frame.kind === "call" ? [frame.returnAddress] : []));
  }

  /** Runs everybody against each other, from the state that the laboratory is in: `kernel.boot` has been. */
  conductor(options: ConductorOptions): Conductor {
    const writer = new OopsWriter(this.kernel, this.dumper, () =>
      this.modules.loaded.map(({ name }) => name),
    );
    return new Conductor(this.kernel, options, writer, (at) => this.code.describe(at));
  }

  /** A checker of one run's invariants. */
  invariants(options?: InvariantOptions): Invariants {
    return new Invariants(this.kernel, this.image, this.unwinding, options);
  }

  /** Gives back what its machine takes, as `Machine.dispose` does; to be called where many labs are opened. */
  dispose(): void {
    this.machine.dispose();
  }

  /** An exit in one line, with symbols. */
  describe(exit: Exit): string {
    return describeExit(exit, (ip) => this.code.describe(ip));
  }

  /**
   * True if `exit` came of an access to the guard page below the stack of the vCPU's task: a double fault, as the
   * page fault's frame did not fit there either.
   */
  private overflowed(vcpu: Vcpu, exit: Exit): boolean {
    const low = this.kernel.current(vcpu)?.stack.low;
    if (low === undefined || exit.kind !== "fault") return false;
    if (exit.fault.vector !== "#PF" && exit.fault.vector !== "#DF") return false;
    const address = BigInt.asIntN(64, vcpu.system.getWord("cr2"));
    return address >= low - PAGE_SIZE && address < low;
  }
}

async function readSource(source: Source): Promise<ObjectFile> {
  if (typeof source === "string") return readObject(source, readInput(source));
  return readObject(`${source.name}.S`, new TextEncoder().encode(source.assembly));
}

/** An object from an ELF file, or assembled from a `.S` or `.s` source. */
export async function readObject(path: string, bytes: Uint8Array): Promise<ObjectFile> {
  if (!/\.[sS]$/.test(path)) return parseElf(path, bytes);
  const assembler = await loadAssembler();
  return assembler.assemble(path, new TextDecoder().decode(bytes), { include: includeGuestSource });
}
