// What a trampoline is put to: a kernel with a traced function (asm/check/traced.S), a CPU and a task to call it.

import { type Addr, offset } from "../../base/addr.ts";
import type { Ftrace, FtraceOps, FtraceRecord } from "../../ftrace/ftrace.ts";
import { SITE_SIZE } from "../../ftrace/site.ts";
import type { TemplateKind } from "../../ftrace/trampoline.ts";
import type { CodeMap, CodeRange } from "../../image/codeMap.ts";
import type { Kernel, Task } from "../../kernel/kernel.ts";
import type { UnwindingParts } from "../../kernel/unwindContext.ts";
import type { Machine } from "../../machine/machine.ts";
import type { Vcpu } from "../../machine/vcpu.ts";
import type { RelocationType } from "../../x86/object.ts";
import { Subject } from "../subject.ts";

export interface BenchParts {
  readonly machine: Machine;
  readonly kernel: Kernel;
  readonly ftrace: Ftrace;
  readonly unwinding: UnwindingParts & { readonly code: CodeMap };
  readonly symbol: (name: string) => Addr;
}

/** A field of a copy that has to be put right for where the copy lies. */
export interface Fixup {
  readonly offset: number;
  readonly type: RelocationType;
  readonly target: Addr;
  readonly addend: number;
}

/** Code that sites call, and what it is to hand on. */
export interface Trampoline {
  readonly name: string;
  readonly kind: TemplateKind;
  /** Registered, it has the site call the trampoline. */
  readonly ops: FtraceOps;
  /** Where the site's call leads, and the size of what is copied from there. */
  readonly entry: Addr;
  readonly size: number;
  /** All code that is the trampoline's own: from `low` up to `high`. */
  readonly low: Addr;
  readonly high: Addr;
  /** Whom it may call: the first instruction of each. */
  readonly handlers: readonly Addr[];
  /** The ops that the handler is to get. */
  readonly passed: Addr;
  readonly fixups: readonly Fixup[];
}

export class Bench {
  readonly machine: Machine;
  readonly kernel: Kernel;
  readonly ftrace: Ftrace;
  readonly subject: Subject;
  readonly vcpu: Vcpu;
  readonly task: Task;
  readonly site: FtraceRecord;
  /** Behind the site. */
  readonly body: Addr;
  /** Where a handler sends calls. */
  readonly replacement: Addr;
  /** Calls the traced function. */
  readonly caller: Addr;
  /** Calls it with other registers, from inside of such a call. */
  readonly inside: Addr;
  /** The word that has whom device interrupts call. */
  readonly deviceHandler: Addr;
  /** Where a timer's interrupt begins, and where a device's does. */
  readonly timerEntry: Addr;
  readonly deviceEntry: Addr;
  /** Where the handler has its frame. */
  readonly framed: Addr;
  /** Not zero: the handler calls the traced function. */
  readonly deeper: Addr;
  /** A `ret`. */
  readonly ret: Addr;
  private readonly code: CodeMap;

  constructor(parts: BenchParts) {
    const { machine, kernel, ftrace, symbol } = parts;
    this.machine = machine;
    this.kernel = kernel;
    this.ftrace = ftrace;
    this.code = parts.unwinding.code;
    this.subject = new Subject(parts);
    this.vcpu = machine.vcpus[0]!;
    this.task = kernel.tasks[0]!;
    const traced = symbol("check_traced");
    this.site = ftrace.siteOf(traced, "check_traced");
    this.body = offset(this.site.ip, SITE_SIZE);
    this.replacement = symbol("check_replacement");
    this.caller = symbol("check_caller");
    this.inside = symbol("check_inside");
    this.deviceHandler = symbol("device_handler");
    this.timerEntry = symbol("asm_sysvec_apic_timer_interrupt");
    this.deviceEntry = symbol("asm_common_interrupt");
    this.framed = symbol("check_handler_framed");
    this.deeper = symbol("check_deeper");
    this.ret = symbol("ftrace_stub");
  }

  /** Has the site call `trampoline` for as long as `act` takes. */
  directed<T>({ ops }: Trampoline, act: () => T): T {
    this.ftrace.enable(this.site, ops);
    try {
      return act();
    } finally {
      this.ftrace.disable(this.site);
    }
  }

  isText(at: Addr): boolean {
    return this.code.isText(at);
  }

  /** Makes code known that was made at run time, until a snapshot from before is restored. */
  addCode(range: CodeRange): void {
    this.code.addRange(range);
  }

  /** An address in words. */
  describe(at: Addr): string {
    return this.code.describe(at);
  }

  word(at: Addr): bigint {
    return this.machine.memory.readWord(at);
  }
}
