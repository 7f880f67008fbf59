// Who holds a transition up, and why: patients in the situations that live patches have a hard time with, each in a run with a
// seed, up to where one of them is in the way. The right task, frame, reason and advice: test/transcripts/blockers-*.txt.

import { mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { afterAll, beforeAll, describe, expect, test } from "vitest";
import type { Addr } from "../../src/base/addr.ts";
import type { Chooser } from "../../src/base/chooser.ts";
import { seeded } from "../../src/explore/chooser.ts";
import { SITE_SIZE } from "../../src/ftrace/site.ts";
import { TASK_STATE, THREAD_FLAG } from "../../src/kernel/layout.ts";
import type { Lab } from "../../src/lab.ts";
import type { Blocker } from "../../src/livepatch/blocker.ts";
import type { Patch } from "../../src/livepatch/patch.ts";
import { Patients } from "../../src/patients.ts";
import { orcUnwinder } from "../../src/unwind/orcWalker.ts";
import { compare } from "../transcript.ts";

let folder: string;
beforeAll(() => {
  folder = mkdtempSync(join(tmpdir(), "fentrylab-"));
});
afterAll(() => rmSync(folder, { recursive: true }));

const SEED = 7;
const BUDGET = 6_000_000;
/** Guest time between two looks at everybody. */
const RETRY = 20_000;
/** Slices between two looks at what the transition waits for. */
const EVERY = 16;

/** What the next look does not change by itself. */
const STAYING = { "on-stack": true, unreliable: true };

interface Situation {
  readonly name: string;
  /** In which object, if it is not the kernel, and what of it is patched. */
  readonly object?: string;
  readonly func: string;
  /** What the task does there; waits for a CPU if not given. */
  readonly state?: keyof typeof TASK_STATE;
}

const PATIENTS = { object: "patients" } as const;
const SITUATIONS: readonly Situation[] = [
  { name: "read", func: "vfs_read", state: "TASK_INTERRUPTIBLE" },
  { name: "futex", func: "sys_futex", state: "TASK_INTERRUPTIBLE" },
  { name: "stopped", func: "do_signal", state: "TASK_STOPPED" },
  { name: "traced", func: "do_signal", state: "TASK_TRACED" },
  { ...PATIENTS, name: "uninterruptible", func: "sleep_uninterruptibly", state: "TASK_UNINTERRUPTIBLE" },
  { ...PATIENTS, name: "schedule-loop", func: "schedule_loop", state: "TASK_UNINTERRUPTIBLE" },
  { ...PATIENTS, name: "freezer-loop", func: "freeze_loop", state: "TASK_INTERRUPTIBLE" },
  { ...PATIENTS, name: "always-on-stack", func: "forever", state: "TASK_UNINTERRUPTIBLE" },
  { ...PATIENTS, name: "recursion", func: "is_odd", state: "TASK_UNINTERRUPTIBLE" },
  { ...PATIENTS, name: "preempted", func: "compute" },
];

/** A thread that sleeps for good, in code of which the unwinder is told nothing. */
const MURKY = `.include "macros.inc"
.text
untraced murky
	unwind_hint_undefined
	sub $8, %rsp
1:	mov %gs:0, %rax
	movl $TASK_INTERRUPTIBLE, TASK_STATE(%rax)
	call schedule
	jmp 1b
done murky
`;

/** A run of the patients that can be stopped where somebody is in the way. */
class Scene {
  readonly lab: Lab;
  private readonly patients: Patients;

  static async open(): Promise<Scene> {
    const patients = await Patients.open({ vcpus: 2, rounds: 30 });
    patients.lab.livepatch.options = { retryEvery: RETRY, signalsTimeout: Number.MAX_SAFE_INTEGER };
    return new Scene(patients);
  }

  private constructor(patients: Patients) {
    this.patients = patients;
    this.lab = patients.lab;
  }

  /** A replacement that goes on behind the original's site: everybody does what he did. */
  async replacement(func: string): Promise<Addr> {
    const file = join(folder, `${func}.S`);
    const behind = BigInt.asUintN(64, BigInt(this.lab.symbol(func).address + SITE_SIZE));
    writeFileSync(
      file,
      `.include "macros.inc"
.text
untraced ${func}_new
	movabs $0x${behind.toString(16)}, %r11
	jmp *%r11
done ${func}_new
`,
    );
    const image = await this.lab.loadModule(`fix_${func}`.slice(0, 15), [file]);
    return image.symbol(`${func}_new`).address;
  }

  begin(): void {
    this.patients.begin();
  }

  /** Runs until `watch` has something to say. */
  run<T>(watch: (slices: number) => T | undefined): T {
    let said: T | undefined;
    let count = 0;
    const end = this.lab.conductor({ chooser: this.eager(seeded(SEED)) }).run({
      budget: BUDGET,
      watch: () => {
        said = watch(++count);
        return said === undefined ? undefined : "there it is";
      },
    });
    return said ?? expect.fail(`nobody was in the way: ${end.kind}`);
  }

  /** Has a transition begin before those who sleep for a moment are gone: what is ready of it goes before CPUs. */
  private eager(chooser: Chooser): Chooser {
    const { livepatch, kernel } = this.lab;
    return {
      choose: (kind, count) => {
        const isBeginning = kind === "vcpu" && livepatch.transition?.tries === 0;
        return isBeginning && kernel.agenda.ready().length > 0 ? count - 1 : chooser.choose(kind, count);
      },
    };
  }

  /** Whether a task that no CPU executes is in `func`. */
  isThere(func: string, state: number): boolean {
    const { kernel, unwinding, code } = this.lab;
    return kernel.tasks.some((task) => {
      const start = task.onCpu || task.state !== state ? undefined : kernel.startOf(task);
      if (start === undefined) return false;
      const { frames } = orcUnwinder.walk(kernel.unwindContext(task, unwinding), start);
      return frames.some(({ address }) => code.symbolAt(address)?.symbol.name === func);
    });
  }

  /** Patches, and goes back to before, as often as it takes until `is` holds for one who was tried. */
  async patch({ object, func, state }: Situation, is: (blocker: Blocker) => boolean): Promise<string[]> {
    const { livepatch } = this.lab;
    const functions = [{ name: func, replacement: await this.replacement(func) }];
    const objects = [{ ...(object === undefined ? {} : { name: object }), functions }];
    let patch: Patch | undefined;
    const wanted = state === undefined ? 0 : TASK_STATE[state];
    this.begin();
    return this.run((slices) => {
      if (patch === undefined && this.isThere(func, wanted))
        patch = livepatch.enable({ name: `fix_${func}`, objects });
      if (slices % EVERY !== 0 || patch === undefined) return undefined;
      if (livepatch.transition !== undefined) return this.report(is);
      patch = this.there(patch);
      return undefined;
    });
  }

  /** And back: disables a patch that is through; undefined once it is gone. */
  there(patch: Patch): Patch | undefined {
    const { livepatch, kernel } = this.lab;
    if (kernel.agenda.isPending("livepatch")) return patch;
    if (patch.enabled) livepatch.disable(patch);
    return livepatch.patches.includes(patch) ? patch : undefined;
  }

  /** The transcript, once one of those that are looked for is among those who have been tried. */
  report(is: (blocker: Blocker) => boolean): string[] | undefined {
    const { livepatch } = this.lab;
    if ((livepatch.transition?.tries ?? 0) === 0) return undefined;
    const blockers = livepatch.blockers().filter(({ reason }) => reason.kind in STAYING);
    if (!blockers.some(is)) return undefined;
    const { patch, target } = livepatch.transition!;
    return [`${patch}, ${target}`, ...blockers.flatMap((blocker) => ["", ...lines(blocker)])];
  }

  dispose(): void {
    this.lab.dispose();
  }
}

function lines({ task, why, advice, stack, text }: Blocker): string[] {
  return [`${task} ${why}`, `  ${text}`, `  ${advice}`, ...stack.map((frame) => `    ${frame}`)];
}

describe("a task that is in the way, and why", () => {
  test.each(SITUATIONS)("$name: $func", async (situation) => {
    const { name, func, state } = situation;
    const scene = await Scene.open();
    const wanted = state === undefined ? 0 : TASK_STATE[state];
    const report = await scene.patch(situation, ({ task, reason }) => {
      return reason.kind === "on-stack" && reason.found.name === func && task.state === wanted;
    });
    compare(`blockers-${name}`, report);
    scene.dispose();
  });

  test("preempted in a trampoline, with the new body's address pending: on no stack, and yet where it goes", async () => {
    const scene = await Scene.open();
    const { livepatch, kernel, machine } = scene.lab;
    const functions = [{ name: "mix", replacement: await scene.replacement("mix") }];
    const handler = scene.lab.symbol("klp_ftrace_handler");
    scene.begin();
    let patch: Patch | undefined;
    const report = scene.run(() => {
      patch ??= livepatch.enable({ name: "fix_mix", objects: [{ name: "patients", functions }] });
      // Somebody waits for each CPU that is in the handler: preemption is off, so that it is let at the handler's end.
      for (const vcpu of machine.vcpus) {
        const at = vcpu.rip - handler.address;
        const task = kernel.current(vcpu);
        if (at >= 0 && at < handler.size && task !== undefined)
          livepatch.tasks.setFlag(task, THREAD_FLAG.TIF_NEED_RESCHED, true);
      }
      if (livepatch.transition === undefined) patch = scene.there(patch);
      if (livepatch.transition?.target !== "KLP_UNPATCHED") return undefined;
      return scene.report(({ reason }) => reason.kind === "on-stack" && reason.found.pending);
    });
    compare("blockers-pending", report);
    scene.dispose();
  });

  test("an unreliable stack: nothing is known of code on it", async () => {
    const scene = await Scene.open();
    const { livepatch, kernel } = scene.lab;
    const file = join(folder, "murky.S");
    writeFileSync(file, MURKY);
    const image = await scene.lab.loadModule("murky", [file]);
    const replacement = await scene.replacement("vfs_read");
    scene.begin();
    kernel.start(kernel.createKthread({ comm: "murky", function: image.symbol("murky").address }));
    let isEnabled = false;
    const report = scene.run(() => {
      const isThere = kernel.tasks.some(
        ({ comm, state }) => comm === "murky" && state === TASK_STATE.TASK_INTERRUPTIBLE,
      );
      if (isThere && !isEnabled) {
        const functions = [{ name: "vfs_read", replacement }];
        livepatch.enable({ name: "fix_vfs_read", objects: [{ functions }] });
        isEnabled = true;
      }
      return scene.report(({ reason }) => reason.kind === "unreliable");
    });
    compare("blockers-unreliable", report);
    scene.dispose();
  });
});
