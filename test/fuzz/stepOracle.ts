// This engine's stepping as the oracle of its regions: what they are made of, and needs no host.

import type { Exit } from "../../src/machine/exit.ts";
import { DATA_SIZE } from "../x86/cases-model.ts";
import { type Batch, FRAME_INDEX, FRAME_RFLAGS, FRAME_RIP } from "./batch.ts";
import { BulkMachine } from "./bulkMachine.ts";
import { BREAKPOINT, type Oracle, OUTCOME, type Outcomes, SIGVTALRM, VECTORS } from "./outcomes.ts";
import { OutcomeWriter } from "./outcomeWriter.ts";

export class StepOracle implements Oracle {
  private readonly machine = new BulkMachine("stepped");

  get formCount(): number {
    return this.machine.formCount;
  }

  run(batch: Batch): Promise<Outcomes> {
    const writer = new OutcomeWriter(batch.count);
    for (let n = 0; n < batch.count; n++) this.runOne(batch, n, writer);
    return Promise.resolve(writer.outcomes());
  }

  close(): void {}

  private runOne(batch: Batch, n: number, writer: OutcomeWriter): void {
    const { machine } = this;
    const exit = machine.run(batch, n);
    const at = writer.begin();
    const { words } = writer;
    const { i32, registers } = machine;
    for (let r = 0; r < 16; r++) {
      words[at + 2 * FRAME_INDEX[r]!] = i32[registers + 2 * r]!;
      words[at + 2 * FRAME_INDEX[r]! + 1] = i32[registers + 2 * r + 1]!;
    }
    words[at + 2 * FRAME_RFLAGS] = machine.flags();
    // An int3 that was not executed counts as one that was.
    const int3 = exit === undefined ? 1 : 0;
    writer.setWord(at + 2 * FRAME_RIP, machine.vcpu.rip + int3);
    words[at + OUTCOME.retired] = machine.instructions + int3;
    if (exit === undefined) words[at + OUTCOME.vector] = BREAKPOINT;
    else this.noteFault(exit, at, writer);
    if (!machine.isExpected())
      for (let offset = 0; offset < DATA_SIZE; offset++) {
        const byte = machine.byteAt(offset);
        if (byte !== machine.expected[offset]) writer.addChange(offset, byte);
      }
    machine.restore(batch, n, writer.changes());
    writer.end();
  }

  private noteFault(exit: Exit, at: number, writer: OutcomeWriter): void {
    const { words } = writer;
    if (exit.kind !== "fault") {
      words[at + OUTCOME.signal] = SIGVTALRM;
      return;
    }
    const { fault } = exit;
    words[at + OUTCOME.vector] = VECTORS[fault.vector]!;
    if (fault.vector !== "#PF") return;
    words[at + OUTCOME.error] = fault.errorCode;
    writer.setWord(at + OUTCOME.cr2, fault.address);
  }
}
