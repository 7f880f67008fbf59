// What is timed: one loaded image on each engine, behind one interface.
//
// Every subject runs the same bytes at the same addresses, from the same registers, so that whatever it
// leaves can be compared with the others. A run that does not end where it should is a bug of ours.

import { type Addr, offset, PAGE_SIZE } from "../src/base/addr.ts";
import { bug } from "../src/base/refuse.ts";
import type { Image } from "../src/image/image.ts";
import { DIRECT_MAP } from "../src/image/layout.ts";
import { load } from "../src/image/load.ts";
import { describeExit } from "../src/machine/exit.ts";
import { Machine } from "../src/machine/machine.ts";
import type { Vcpu } from "../src/machine/vcpu.ts";
import { PROT, type Unicorn, type UnicornCode, type UnicornEngine } from "../src/reference/unicornLibrary.ts";

export const SUBJECTS = ["fentrylab", "unicorn"] as const;
export type SubjectName = (typeof SUBJECTS)[number];

/** Where stepping got to. */
export interface Place {
  readonly rip: Addr;
  readonly rax: bigint;
}

export interface Subject {
  readonly name: SubjectName;
  /** Calls the function at `entry` with `iterations` and gives what it returns. */
  run(entry: Addr, iterations: number): bigint;
  /** Begins that call, and executes `steps` instructions of it one by one, reading a register after each. */
  step(entry: Addr, iterations: number, steps: number): Place;
  close(): void;
}

const STACK = DIRECT_MAP;
const STACK_SIZE = 4 * PAGE_SIZE;
/** rsp at a function's start: the return address lies there. */
const STACK_TOP = offset(STACK, STACK_SIZE - 64);
const INT3 = 0xcc;

export class Fentrylab implements Subject {
  readonly name = "fentrylab";
  private readonly vcpu: Vcpu;
  private readonly returnsTo: Addr;

  constructor(image: Image) {
    const machine = new Machine();
    load(machine.memory, image);
    this.returnsTo = image.end;
    machine.memory.map(STACK, STACK_SIZE, { write: true, execute: false, user: false });
    machine.memory.writeWord(STACK_TOP, BigInt(this.returnsTo));
    this.vcpu = machine.vcpus[0]!;
  }

  /** Instructions retired so far. */
  get instructions(): number {
    return this.vcpu.instructions;
  }

  run(entry: Addr, iterations: number): bigint {
    this.begin(entry, iterations);
    const exit = this.vcpu.run({ until: this.returnsTo });
    if (exit.kind !== "reached") bug(`a workload ended otherwise than by returning: ${describeExit(exit)}`);
    return this.vcpu.get("rax");
  }

  step(entry: Addr, iterations: number, steps: number): Place {
    this.begin(entry, iterations);
    const { vcpu } = this;
    for (let n = 0; n < steps; n++) {
      const exit = vcpu.step();
      if (exit !== undefined) bug(`a step of a workload stopped: ${describeExit(exit)}`);
      vcpu.getNumber("rax");
    }
    return { rip: vcpu.rip, rax: vcpu.get("rax") };
  }

  close(): void {}

  private begin(entry: Addr, iterations: number): void {
    this.vcpu.rip = entry;
    this.vcpu.rsp = STACK_TOP;
    this.vcpu.setNumber("rdi", iterations);
  }
}

/** Two engines, because one that both steps and runs drops its translations at every change. */
export class UnicornSubject implements Subject {
  readonly name = "unicorn";
  private readonly runner: UnicornEngine;
  private readonly stepper: UnicornEngine;
  private readonly returnsTo: Addr;

  constructor(unicorn: Unicorn, image: Image) {
    this.returnsTo = image.end;
    [this.runner, this.stepper] = [this.open(unicorn, image), this.open(unicorn, image)];
  }

  run(entry: Addr, iterations: number): bigint {
    begin(this.runner, iterations);
    checkCode(this.runner.start(entry, this.returnsTo));
    return this.runner.regRead("rax");
  }

  step(entry: Addr, iterations: number, steps: number): Place {
    const { stepper } = this;
    begin(stepper, iterations);
    // Unicorn wants to be told where each step starts, so rip is the register that is read.
    let rip = entry;
    for (let n = 0; n < steps; n++) {
      checkCode(stepper.step(rip));
      rip = stepper.ip();
    }
    return { rip, rax: stepper.regRead("rax") };
  }

  close(): void {
    this.runner.close();
    this.stepper.close();
  }

  private open(unicorn: Unicorn, image: Image): UnicornEngine {
    const engine = unicorn.open();
    for (const { address, size, bytes } of image.segments) {
      const text = new Uint8Array(Math.ceil(size / PAGE_SIZE) * PAGE_SIZE).fill(INT3);
      text.set(bytes);
      engine.mapMemory(address, text.length, PROT.READ + PROT.EXEC);
      engine.writeMemory(address, text);
    }
    engine.mapMemory(STACK, STACK_SIZE, PROT.READ + PROT.WRITE);
    engine.writeMemory(STACK_TOP, new Uint8Array(new BigInt64Array([BigInt(this.returnsTo)]).buffer));
    return engine;
  }
}

function begin(engine: UnicornEngine, iterations: number): void {
  engine.regWrite("rsp", BigInt.asUintN(64, BigInt(STACK_TOP)));
  engine.regWrite("rdi", BigInt(iterations));
}

function checkCode(code: UnicornCode): void {
  if (code !== "UC_ERR_OK") bug(`a workload ended on Unicorn with ${code}`);
}
