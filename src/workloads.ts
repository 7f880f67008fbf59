// What is audited: one laboratory with all of `asm/` and `fixtures/`, and everything that is done in it.
//
// Every call with its sites off, traced, sent back to the old bodies, redirected to new ones, and with their return
// addresses replaced. New code joins by being listed here.

import { readFileSync } from "node:fs";
import { basename } from "node:path";
import { type Addr, addr, offset, PAGE_SIZE } from "./base/addr.ts";
import { packagePath } from "./base/file.ts";
import { word } from "./base/word.ts";
import type { Workload } from "./explore/audit.ts";
import { Subject } from "./explore/subject.ts";
import type { FtraceOps, FtraceRecord, OpsOptions } from "./ftrace/ftrace.ts";
import type { Image } from "./image/image.ts";
import { FILE } from "./kernel/layout.ts";
import { Lab, type LabOptions } from "./lab.ts";
import type { Redirect } from "./livepatch/redirect.ts";
import { StructView } from "./machine/struct.ts";
import type { Vcpu } from "./machine/vcpu.ts";

/** Assembly whose functions have a second copy to be redirected to. */
const PATCHED_SOURCES = ["asm/faults.S", "asm/read.S", "asm/shapes.S"];
/** Where the kernel's objects of C are. */
const C_HALF = "kernel/";
const FIXTURES = ["atomics", "compute", "lookup_buggy", "queue", "readfile", "string"].map(
  (name) => `fixtures/${name}.o`,
);
/** Needs symbols of the others. */
const FIXED = ["fixtures/lookup_fixed.o"];
/** What each call of a fixture returned on silicon. */
const CALLS = "fixtures/calls.json";

/** One function call, repeatable. */
interface Call {
  readonly name: string;
  readonly target: Addr;
  readonly args: readonly bigint[];
  /** Instructions after which it has gone astray. */
  readonly limit?: number;
  /** In which states of the sites interrupts are followed at every instruction of it. */
  readonly interrupted?: readonly SiteState[];
  /** Whether what it calls was compiled from C. */
  readonly compiled?: boolean;
  /** Whether the first schedule() on its way goes idle. */
  readonly sleeps?: boolean;
}

/** What all call sites do: who is called there, in each. */
export const SITE_STATES = [
  "off",
  "traced",
  "plain",
  "guarded",
  "typescript",
  "shared",
  "shared with registers",
  "direct",
  "direct, shared",
  "old",
  "new",
  "new, shared",
  "settled",
  "return_to_handler",
  "rethook_trampoline",
  "hooked, shared",
] as const;
export type SiteState = (typeof SITE_STATES)[number];

/** In the other states only the calls of `asm/` are made: compiled code has no part in what is different there. */
const STATES_FOR_ALL: readonly SiteState[] = [
  "off",
  "traced",
  "old",
  "new",
  "return_to_handler",
  "rethook_trampoline",
];

/** Whom the sites call, for states in which that is the same at all of them. */
type Callers = Partial<Record<SiteState, readonly FtraceOps[]>>;

export class Workloads {
  readonly lab: Lab;
  readonly subject: Subject;
  readonly functions: readonly { readonly address: Addr; readonly size: number }[];
  private readonly calls: Call[] = [];
  private readonly redirects = new Map<FtraceRecord, Redirect>();
  private readonly callers: Callers;
  /** Files that reads begin at the start of. */
  private readonly files: readonly StructView<keyof typeof FILE.fields>[];

  /** All of `asm/` and `fixtures/`. */
  static async open(): Promise<Workloads> {
    const lab = await Lab.open({ recordCalls: true });
    const paths = (names: readonly string[]) => names.map(packagePath);
    const fixtures = await lab.loadModule("fixtures", paths(FIXTURES));
    const fixed = await lab.loadModule("fixtures_fixed", paths(FIXED));
    const copies = [
      await lab.loadModule("asm_new", paths(PATCHED_SOURCES)),
      await lab.loadModule("fixtures_new", paths(FIXTURES)),
    ];
    const workloads = new Workloads(lab, [lab.image, fixtures, fixed], copies);
    workloads.calls.push(...workloads.assemblyCalls(), ...workloads.fixtureCalls(fixtures, fixed));
    return workloads;
  }

  /** `asm/` alone, in a laboratory made with `options`. */
  static async ofKernel(options: LabOptions = {}): Promise<Workloads> {
    const lab = await Lab.open({ ...options, recordCalls: true });
    const copy = await lab.loadModule("asm_new", PATCHED_SOURCES.map(packagePath));
    const workloads = new Workloads(lab, [lab.image], [copy]);
    workloads.calls.push(...workloads.assemblyCalls());
    return workloads;
  }

  /**
   * Objects or sources of the user's, each a module. `calls` are functions with their arguments, as texts ("tail 20"); if there are
   * none, every global function is called, with addresses in a scratch page for arguments.
   */
  static async ofImages(paths: readonly string[], calls: readonly string[]): Promise<Workloads> {
    const lab = await Lab.open({ recordCalls: true });
    const images: Image[] = [];
    for (const path of paths) images.push(await lab.loadModule(basename(path).replace(/\.\w+$/, ""), [path]));
    const copies: Image[] = [];
    for (const path of paths) copies.push(await lab.loadModule(`${basename(path)} (new)`, [path]));
    const workloads = new Workloads(lab, images, copies);
    workloads.calls.push(
      ...(calls.length > 0 ? calls.map((text) => parseCall(lab, images, text)) : callAll(lab, images)),
    );
    return workloads;
  }

  private constructor(lab: Lab, images: readonly Image[], copies: readonly Image[]) {
    this.lab = lab;
    const { ftrace, machine } = lab;
    this.subject = new Subject({ machine, kernel: lab.kernel, ftrace, unwinding: lab.unwinding });
    this.callers = makeCallers(lab);
    for (const site of ftrace.records) {
      if (copies.some((image) => image.symbolAt(site.ip) !== undefined)) continue;
      const copy = copies.find((image) => image.find(site.symbol)?.kind === "func");
      const replacement = copy?.find(site.symbol)?.address;
      if (replacement !== undefined) this.redirects.set(site, lab.redirectSite(site, replacement));
    }
    const { memory } = machine;
    const table = lab.symbol("files").address;
    this.files = [0, 1].map((n) => new StructView(memory, FILE, addr(memory.readWord(offset(table, 8 * n)))));
    // The kernel's half in C is at work in another audit: with all its tasks.
    this.functions = [...images, ...(images.includes(lab.image) ? copies : [])].flatMap((image) =>
      image.symbols.filter(
        ({ kind, object }) => kind === "func" && !(image === lab.image && object.startsWith(C_HALF)),
      ),
    );
  }

  /** Every workload with its sites in one state after the other; `between` is told of each. */
  *each(): Generator<Workload> {
    for (const state of SITE_STATES) {
      this.direct(state);
      for (const call of this.calls)
        if (call.compiled !== true || STATES_FOR_ALL.includes(state)) yield this.workload(call, state);
      this.restore();
    }
  }

  private workload(call: Call, state: SiteState): Workload {
    return {
      name: `${call.name}, sites ${state}`,
      interrupted: call.interrupted?.includes(state) === true,
      ...(call.limit === undefined ? {} : { limit: call.limit }),
      begin: () => this.begin(call),
    };
  }

  private begin({ target, args, sleeps }: Call): Vcpu {
    for (const file of this.files) file.set("pos", 0);
    const vcpu = this.lab.begin(target, args);
    if (sleeps === true) this.subject.idleNext(vcpu);
    return vcpu;
  }

  /** Directs every site that can be. */
  private direct(state: SiteState): void {
    const { ftrace, kernel } = this.lab;
    for (const ops of this.callers[state] ?? []) ftrace.register(ops);
    if (state !== "old" && state !== "new" && state !== "new, shared" && state !== "settled") return;
    const patchState = state === "old" ? "KLP_UNPATCHED" : "KLP_PATCHED";
    for (const task of kernel.tasks) kernel.setPatchState(task, patchState);
    for (const redirect of this.redirects.values()) {
      redirect.transition = state !== "settled";
      redirect.enable();
      redirect.settled = state === "settled";
    }
    if (state === "new, shared") ftrace.register(this.callers.plain![0]!);
  }

  private restore(): void {
    const { ftrace } = this.lab;
    for (const redirect of this.redirects.values()) redirect.settled = false;
    for (const ops of ftrace.registered) ftrace.unregister(ops);
  }

  private assemblyCalls(): Call[] {
    const { lab } = this;
    const call = (name: string, ...args: bigint[]): Call => ({
      name: [name, ...args].join(" "),
      target: lab.image.symbol(name).address,
      args,
    });
    const buffer = BigInt(lab.symbol("read_buffer").address);
    return [
      call("leaf", 1n),
      call("leaf_new", 1n),
      call("tail", 3n),
      call("loop", 3n),
      call("through_pointer", 7n),
      call("checked", 1n),
      call("checked", 0n),
      call("through_thunks", 7n),
      call("sys_read", 0n, buffer, 64n),
      call("sys_read", 0n, buffer, 0n),
      call("sys_read", 1n, buffer, 12n),
      call("sys_read", 2n, buffer, 1n),
      call("sys_read", 4n, buffer, 1n),
      call("mem_read_upper", BigInt(this.files[0]!.at), buffer, 9n),
      ...lab.image.symbols.filter(({ name }) => name.startsWith("fault_")).map(({ name }) => call(name)),
      { ...call("nap"), sleeps: true },
      { ...call("nap_between", 5n), sleeps: true },
      { ...call("loop", 1n), interrupted: SITE_STATES },
      { ...call("nap_between", 5n), sleeps: true, interrupted: ["off"] },
    ];
  }

  /** Of the recorded calls, in their order, those that reach an instruction that none before them did. */
  private fixtureCalls(fixtures: Image, fixed: Image): Call[] {
    const recorded = JSON.parse(readFileSync(packagePath(CALLS), "utf8")) as readonly {
      readonly object: string;
      readonly function: string;
      readonly args: readonly string[];
    }[];
    const reached = new Set<Addr>();
    const calls = recorded.map(({ object, function: name, args }): Call => {
      const image = FIXED.includes(`fixtures/${object}`) ? fixed : fixtures;
      const target = image.symbol(name).address;
      return { name: [name, ...args].join(" "), target, args: args.map(BigInt), compiled: true };
    });
    return calls.filter((call) => {
      const before = reached.size;
      const vcpu = this.begin(call);
      do reached.add(vcpu.rip);
      while (vcpu.step() === undefined);
      return reached.size > before;
    });
  }
}

/** Of a call with made-up arguments. */
const GUESSED_LIMIT = 20_000;

function callAll(lab: Lab, images: readonly Image[]): Call[] {
  const scratch = BigInt(lab.allocate(PAGE_SIZE));
  const args = [0n, 512n, 1024n, 1536n, 2048n, 2560n].map((at) => scratch + at);
  return images.flatMap((image) =>
    image.symbols
      .filter(({ kind, binding }) => kind === "func" && binding !== "local")
      .map(({ name, address }) => ({ name, target: address, args, limit: GUESSED_LIMIT })),
  );
}

function parseCall(lab: Lab, images: readonly Image[], text: string): Call {
  const [name = "", ...words] = text.trim().split(/\s+/);
  const image = images.find((candidate) => candidate.find(name) !== undefined) ?? images[0] ?? lab.image;
  return { name: text, target: image.symbol(name).address, args: words.map(word), limit: GUESSED_LIMIT * 50 };
}

/** One ops, or several, of every kind. */
function makeCallers({ ftrace, image }: Lab): Callers {
  const at = (name: string) => image.symbol(name).address;
  const stub = (name: string, options: Partial<OpsOptions> = {}) =>
    ftrace.makeOps({ name, handler: at("ftrace_stub"), ...options });
  const hook = (name: string) => ftrace.makeOps({ name, handler: at("return_hook_handler"), own: at(name) });
  const direct = ftrace.makeDirect({ name: "direct", target: at("direct_stub") });
  // It is for every function: a filter that says so.
  for (const ops of [direct]) ftrace.setFilter(ops, ["*"]);
  const [plain, registers] = [stub("plain"), stub("traced", { saveRegs: true })];
  return {
    traced: [registers],
    plain: [plain],
    guarded: [stub("guarded", { recursion: true })],
    typescript: [stub("typescript", { handler: () => {} })],
    shared: [plain, stub("another")],
    "shared with registers": [plain, registers],
    direct: [direct],
    "direct, shared": [direct, plain],
    return_to_handler: [hook("return_to_handler")],
    rethook_trampoline: [hook("rethook_trampoline")],
    "hooked, shared": [hook("return_to_handler"), plain],
  };
}
