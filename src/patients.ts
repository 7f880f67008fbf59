// The kernel with its patients: a module of threads, a program of user tasks, and what runs both.
//
// Patients are kernel code that a live patch has a hard time with (kernel/patients.c, asm/user/patients.S). Each does its
// rounds and ends; what it finds wrong it counts, so that a run in which something is lost does not look like one
// that went well.

import { addr, offset } from "./base/addr.ts";
import { packagePath, readPackageFile } from "./base/file.ts";
import type { Image } from "./image/image.ts";
import { PROCESS_FLAG } from "./kernel/layout.ts";
import { Lab, type LabOptions, readObject } from "./lab.ts";

const MODULE = "kernel/patients.o";
/** One that a user task loads and unloads. */
const VISITOR = "kernel/visitor.o";
const PROGRAM = "asm/user/patients.S";
/** Where their numbers begin (kernel/patients.c). */
const USER_PATIENTS = 32;
/** The program's table: an address and a name of 16 bytes each. */
const ENTRY_SIZE = 24;
const NAME_SIZE = 16;

/** Threads and interrupts of the module, by their numbers. */
const THREADS = [
  "schedule_loop",
  "freeze_loop",
  "busy",
  "recursion",
  "always_on_stack",
  "held_pointer",
  "lock_protocol",
  "producer",
  "consumer",
  "inlined",
  "from_interrupt",
  "sleep_uninterruptibly",
  "compute",
  "worker",
] as const;

/** Tasks that are there for as long as the kernel is. */
const STAY = ["PF_LAB", "PF_WQ_WORKER", "PF_STOPPER"] as const;
/** How often these come by is left to chance. */
const CHANCE: readonly string[] = ["from_interrupt"];

export interface PatientsOptions extends Omit<LabOptions, "objects"> {
  /** How many there are of each user task, 1 to MAX_COPIES; default 1. */
  readonly copies?: number;
  /** How often each patient does what it does; default 3. */
  readonly rounds?: number;
}

export interface Progress {
  readonly name: string;
  /** Rounds of a thread; of user tasks, how many have come to their end. */
  readonly count: number;
}

export class Patients {
  readonly lab: Lab;
  /** The module of threads. */
  readonly module: Image;
  /** The program of user tasks. */
  readonly program: Image;
  private readonly options: PatientsOptions;

  static async open(options: PatientsOptions = {}): Promise<Patients> {
    const lab = await Lab.open(options);
    const object = (path: string) => readObject(path, options.parts?.get(path) ?? readPackageFile(path));
    lab.modules.offer("patients", [await object(MODULE)]);
    const module = lab.modules.insert("patients");
    lab.modules.offer("visitor", [await object(VISITOR)]);
    const program = await lab.loadProgram("init", [packagePath(PROGRAM)]);
    return new Patients(lab, module, program, options);
  }

  private constructor(lab: Lab, module: Image, program: Image, options: PatientsOptions) {
    this.lab = lab;
    this.module = module;
    this.program = program;
    this.options = options;
  }

  /** Lets all CPUs begin, and everything that is to run; what is chosen on the way, the kernel's chooser is asked. */
  begin(): void {
    const { lab, module, program } = this;
    const { kernel } = lab;
    const { memory } = lab.machine;
    const { copies = 1, rounds = 3 } = this.options;
    kernel.boot();
    for (const n of [0, 1]) {
      const worker = lab.symbol("worker_thread").address;
      kernel.start(
        kernel.createKthread({ comm: `kworker/u:${n}`, function: worker, flags: PROCESS_FLAG.PF_WQ_WORKER }),
      );
    }
    memory.writeWord(module.symbol("rounds").address, BigInt(rounds));
    const init = kernel.createUserTask({
      comm: "init",
      entry: program.symbol("init").address,
      stack: program.symbol("stacks").address,
      argument: BigInt(copies),
    });
    memory.writeWord(module.symbol("first_user_task").address, BigInt(init.struct.at));
    kernel.start(
      kernel.createKthread({ comm: "patients", function: module.symbol("patients_main").address }),
    );
  }

  /** Where all CPUs are idle: who waits for what never comes, or has not done its rounds; undefined if all is done. */
  get unfinished(): string | undefined {
    const { kernel, code } = this.lab;
    const { copies = 1, rounds = 3 } = this.options;
    const left = kernel.tasks.find((task) => !STAY.some((flag) => task.has(flag)));
    if (left !== undefined) {
      const start = kernel.startOf(left);
      return `${left} waits for ever (${left.letter}${start === undefined ? "" : ` in ${code.describe(start.ip)}`})`;
    }
    const least = (name: string) => ((THREADS as readonly string[]).includes(name) ? rounds : copies);
    const behind = this.progress.find(({ name, count }) => count < least(name) && !CHANCE.includes(name));
    return behind && `${behind.name} has ended after ${behind.count} of ${least(behind.name)}`;
  }

  /** What patients found wrong. */
  get failures(): number {
    return this.lab.machine.memory.readNumber(this.module.symbol("failures").address)!;
  }

  get progress(): Progress[] {
    const { memory } = this.lab.machine;
    const counts = this.module.symbol("progress").address;
    const count = (patient: number) => memory.readNumber(offset(counts, 8 * patient))!;
    return [
      ...THREADS.map((name, n) => ({ name, count: count(n) })),
      ...this.userNames().map((name, n) => ({ name, count: count(USER_PATIENTS + n) })),
    ];
  }

  private userNames(): string[] {
    const { memory } = this.lab.machine;
    const names: string[] = [];
    for (let at = this.program.symbol("programs").address; ; at = addr(at + ENTRY_SIZE)) {
      if (memory.readNumber(at) === 0) return names;
      names.push(text(memory.read(offset(at, 8), NAME_SIZE)));
    }
  }
}

function text(bytes: Uint8Array): string {
  return new TextDecoder().decode(bytes.subarray(0, bytes.indexOf(0)));
}
