// A kernel that runs, and the words that the kernel's own scripts drive it with (Linux
// tools/testing/selftests/livepatch/functions.sh): modules are loaded and unloaded, and functions called, by user tasks.
//
// What happens is read from the kernel's log, which notes the commands as well. Everything else is left to chance.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type Addr, offset } from "../../../src/base/addr.ts";
import { packagePath } from "../../../src/base/file.ts";
import { Refusal } from "../../../src/base/refuse.ts";
import { seeded } from "../../../src/explore/chooser.ts";
import type { Image } from "../../../src/image/image.ts";
import { PROCESS_FLAG, SYSCALL, TASK_STATE, VECTORS } from "../../../src/kernel/layout.ts";
import { Lab } from "../../../src/lab.ts";
import type { Patch, PatchSpec } from "../../../src/livepatch/patch.ts";
import { errnoOf } from "../../../src/livepatch/refusal.ts";

/** One system call, with one argument. Its task ends with it. */
const COMMAND = `.include "user/program.inc"
.bss
.p2align 12
	.skip 4096
stack:
.data
.p2align 3
number: .quad 0
argument: .quad 0
result: .quad 0
name: .skip 16
.text
program main
	mov number(%rip), %rax
	mov argument(%rip), %rdi
	syscall
	mov %rax, result(%rip)
	xor %edi, %edi
	sys NR_exit
done main
`;

const MODULES = [
  ...["klp_busy", "klp_demo", "klp_demo2", "klp_hello", "klp_mod", "klp_replace"],
  ...["klp_shadow", "klp_state", "klp_state2", "klp_state3"],
] as const;
export type ModuleName = (typeof MODULES)[number];

/** Files that the kernel's functions are behind, in the order of `enum show` (fixtures/livepatch/target.h). */
const SHOWS = ["cmdline", "meminfo", "loglevel", "version", "mod", "busy"] as const;
export type Show = (typeof SHOWS)[number];

const ERROR_TEXTS: Readonly<Record<number, string>> = {
  16: "Device or resource busy",
  19: "No such device",
  22: "Invalid argument",
};
const BUDGET = 20_000_000;
const FTRACE_ENABLED = "/proc/sys/kernel/ftrace_enabled";

const fixture = (name: string) => packagePath(`fixtures/livepatch/${name}.o`);

export class Rig {
  readonly lab: Lab;
  private readonly modules: readonly Image[];
  private readonly command: Image;
  private readonly run: (until: () => boolean) => void;

  /** A kernel with two CPUs; the same `seed` gives the same run. */
  static async open(seed = 1): Promise<Rig> {
    const lab = await Lab.open({ vcpus: 2, objects: [fixture("target")] });
    const modules: Image[] = [];
    for (const name of MODULES) modules.push(await lab.offerModule(name, [fixture(name)]));
    const folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
    try {
      const file = join(folder, "command.S");
      writeFileSync(file, COMMAND);
      return new Rig(lab, modules, await lab.loadProgram("command", [file]), seed);
    } finally {
      rmSync(folder, { recursive: true });
    }
  }

  private constructor(lab: Lab, modules: readonly Image[], command: Image, seed: number) {
    this.lab = lab;
    this.modules = modules;
    this.command = command;
    const { kernel, machine } = lab;
    machine.memory.writeWord(lab.symbol("laboratory_call").address, BigInt(lab.symbol("show_call").address));
    kernel.boot();
    const worker = kernel.createKthread({
      comm: "kworker/0:0",
      function: lab.symbol("worker_thread").address,
      flags: PROCESS_FLAG.PF_WQ_WORKER,
    });
    kernel.start(worker);
    const conductor = lab.conductor({ chooser: seeded(seed) });
    this.run = (until) => {
      if (until()) return;
      const end = conductor.run({ budget: BUDGET, watch: () => (until() ? "done" : undefined) });
      if (!until()) throw new Error([`it came to nothing: ${end.kind}`, ...this.state].join("\n"));
    };
  }

  /** What the log says, without times, from the first command on. */
  get lines(): readonly string[] {
    const all = this.lab.kernel.log.lines.map((line) => line.replace(/^\[[^\]]*\] /, ""));
    return all.slice(all.findIndex((line) => /^(%|livepatch:)/.test(line)));
  }

  // ---- The scripts' words.

  loadMod(name: ModuleName, parameters = ""): void {
    this.log(`% modprobe ${name} ${parameters}`.trim());
    const result = this.modprobe(name);
    if (result !== 0) throw new Error(`modprobe ${name}: ${result}`);
  }

  loadFailingMod(name: ModuleName): void {
    this.log(`% modprobe ${name}`);
    this.couldNotInsert(name, -this.modprobe(name));
  }

  /** Loads a live patch and waits for the end of its transition. */
  loadLp(spec: PatchSpec & { readonly name: ModuleName }, parameters = ""): Patch {
    const patch = this.loadLpNowait(spec, parameters);
    this.wait(() => this.lab.livepatch.transition === undefined);
    return patch;
  }

  /** The same without waiting for more than its beginning. */
  loadLpNowait(spec: PatchSpec & { readonly name: ModuleName }, parameters = ""): Patch {
    this.loadMod(spec.name, parameters);
    const patch = this.enable(spec);
    if (typeof patch === "number") throw new Error(`${spec.name} cannot be enabled: error ${patch}`);
    return patch;
  }

  loadFailingLp(spec: PatchSpec & { readonly name: ModuleName }, parameters = ""): void {
    this.loadMod(spec.name, parameters);
    const error = this.enable(spec);
    if (typeof error !== "number") throw new Error(`${spec.name} is enabled`);
    this.wait(() => this.usersOf(spec.name) === 0);
    this.system("NR_delete_module", spec.name);
    this.couldNotInsert(spec.name, error);
  }

  disableLp(name: ModuleName): void {
    this.write(`/sys/kernel/livepatch/${name}/enabled`, "0");
    this.wait(() => !this.lab.sysfs.exists(`/sys/kernel/livepatch/${name}`));
  }

  /** Of a live patch as of another module: once nobody needs it. */
  unload(name: ModuleName): void {
    this.wait(() => this.usersOf(name) === 0);
    this.log(`% rmmod ${name}`);
    const result = this.system("NR_delete_module", name);
    if (result !== 0) throw new Error(`rmmod ${name}: ${result}`);
  }

  /** Writes to a file of sysfs, and says so. */
  write(path: string, text: string): void {
    this.log(`% echo ${text} > ${path}`);
    this.live(() => this.lab.sysfs.write(path, text));
  }

  setFtraceEnabled(value: "0" | "1"): void {
    try {
      this.live(() => this.lab.sysfs.write(FTRACE_ENABLED, value));
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      this.log(`livepatch: sysctl: setting key "kernel.ftrace_enabled": ${ERROR_TEXTS[16]}`);
      return;
    }
    this.wait(() => this.lab.kernel.agenda.isEmpty);
    this.log(`livepatch: kernel.ftrace_enabled = ${this.lab.sysfs.read(FTRACE_ENABLED).trim()}`);
  }

  // ---- What can be seen.

  /** Has a user task read it: what the kernel's function, or the one in its place, has to say. */
  show(what: Show): readonly string[] {
    this.log(`% cat /proc/${what}`);
    const before = this.lines.length;
    const result = this.system("NR_laboratory", SHOWS.indexOf(what));
    if (result !== 0) throw new Error(`show ${what}: ${result}`);
    return this.lines.slice(before);
  }

  /** Where a function of a module is, or is going to be. */
  address(name: string): Addr {
    const at = this.modules.map((module) => module.exported(name)).find((found) => found !== undefined);
    if (at === undefined) throw new Error(`no module has ${name}`);
    return at;
  }

  log(text: string): void {
    this.lab.kernel.log.print(text);
  }

  /** Runs until `condition` holds. */
  wait(condition: () => boolean): void {
    this.run(condition);
  }

  /** For whoever looks for why nothing goes on. */
  private get state(): readonly string[] {
    const { kernel, livepatch } = this.lab;
    return [
      ...kernel.agenda.pending.map(({ strand, what }) => `${strand}: ${what}`),
      ...livepatch.blockers().map(({ task, why, stack }) => `${task} ${why}: ${stack.join(" ")}`),
      ...this.lines,
    ];
  }

  /** A word of the kernel's, of 32 bits, signed. */
  int(symbol: string): number {
    return this.intAt(this.lab.symbol(symbol).address);
  }

  intAt(at: Addr): number {
    const bytes = this.lab.machine.memory.read(at, 4);
    return new DataView(bytes.buffer, bytes.byteOffset).getInt32(0, true);
  }

  setInt(at: string | Addr, value: number): void {
    const address = typeof at === "string" ? this.lab.symbol(at).address : at;
    this.lab.machine.memory.write(address, new Uint8Array(Int32Array.of(value).buffer));
  }

  /** Asks for something while CPUs run: it is done as they go on. */
  live<T>(ask: () => T): T {
    this.lab.kernel.agenda.live = true;
    return ask();
  }

  /** Its error number if it cannot be. */
  private enable(spec: PatchSpec): Patch | number {
    const { livepatch } = this.lab;
    try {
      const patch = this.live(() => livepatch.enable(spec));
      this.wait(() => patch.enabled || (patch.refusal !== undefined && livepatch.transition === undefined));
      return patch.refusal === undefined ? patch : errnoOf(patch.refusal);
    } catch (error) {
      if (error instanceof Refusal) return errnoOf(error);
      throw error;
    }
  }

  private usersOf(name: string): number | undefined {
    return this.lab.modules.loaded.find((module) => module.name === name)?.users;
  }

  private couldNotInsert(name: string, error: number): void {
    this.log(`modprobe: ERROR: could not insert '${name}': ${ERROR_TEXTS[error] ?? `error ${error}`}`);
  }

  private modprobe(name: ModuleName): number {
    return this.system("NR_init_module", name);
  }

  /** A system call of a task of its own. */
  private system(call: keyof typeof SYSCALL, argument: string | number): number {
    const { kernel, machine } = this.lab;
    const at = (symbol: string) => this.command.symbol(symbol).address;
    if (typeof argument === "string")
      machine.memory.write(at("name"), new TextEncoder().encode(`${argument}\0`));
    machine.memory.writeWord(at("number"), BigInt(SYSCALL[call]));
    machine.memory.writeWord(at("argument"), BigInt(typeof argument === "string" ? at("name") : argument));
    // Nobody is to be in the middle of a change of what the new task is put into.
    this.wait(
      () =>
        this.int("tasklist_lock") === 0 &&
        kernel.cpus.every(({ struct }) => struct.getNumber("rq_lock") === 0),
    );
    const task = kernel.createUserTask({
      comm: "command",
      entry: at("main"),
      stack: offset(at("stack"), -8),
    });
    kernel.start(task);
    // Its CPU may be about to halt, and has looked for the last time.
    kernel.interrupt(task.struct.getNumber("cpu"), VECTORS.RESCHEDULE_VECTOR);
    const { EXIT_ZOMBIE, EXIT_DEAD, TASK_DEAD } = TASK_STATE;
    this.wait(() => (task.state & (EXIT_ZOMBIE | EXIT_DEAD | TASK_DEAD)) !== 0);
    return Number(BigInt.asIntN(64, machine.memory.readWord(at("result"))));
  }
}
