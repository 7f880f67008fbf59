// The guided tour: executes everything it tells of, and keeps what it saw.

import { type Addr, addr, hex, offset } from "./base/addr.ts";
import { hexBytes } from "./base/bytes.ts";
import { packagePath } from "./base/file.ts";
import { bug } from "./base/refuse.ts";
import { SITE_SIZE } from "./ftrace/site.ts";
import type { Task } from "./kernel/kernel.ts";
import { FILE } from "./kernel/layout.ts";
import { Lab } from "./lab.ts";
import type { Redirect } from "./livepatch/redirect.ts";
import { StructView } from "./machine/struct.ts";
import type { Vcpu } from "./machine/vcpu.ts";
import type { CallFact, CostFact, SiteFact, StackFact, Tour, Version } from "./report/tour.ts";
import { type Disassembler, formatLines, loadDisassembler } from "./x86/disassemble.ts";

const GCC = "gcc -O2 -pg -mfentry, fixtures/lookup_buggy.c";
const ASSEMBLED = "asm/read.S";
/** Anything but root, so that the fixture's permission check is in force. */
const USER = 1000n;
/** One past the table's last slot: where the secret is. */
const BAD_INDEX = 4n;

/** What one call, stepped from its first instruction to its return, turned out to be. */
interface Watched {
  readonly result: bigint;
  readonly instructions: number;
  readonly version: Version;
  /** Instructions by the function or trampoline they belong to. */
  readonly where: ReadonlyMap<string, number>;
}

export async function gatherTour(): Promise<Tour> {
  const lab = await Lab.open({
    vcpus: 2,
    recordCalls: true,
    objects: [packagePath("fixtures/lookup_buggy.o")],
  });
  const fixed = await lab.loadModule("lookup_fixed", [packagePath("fixtures/lookup_fixed.o")]);
  const guide = new Guide(lab, await loadDisassembler());
  const read = lab.redirect("mem_read", lab.symbol("mem_read_upper").address);
  const lookup = lab.redirect("lookup_slot", fixed.symbol("lookup_slot").address);
  const leaf = lab.redirect("leaf", lab.symbol("leaf_new").address);
  const sites: SiteFact[] = [];
  const calls: CallFact[] = [];

  calls.push(guide.callRead("off"), guide.callLookup("off"));
  sites.push(guide.enable(read, ASSEMBLED, () => calls.push(...guide.callBothInTransition())));
  sites.push(guide.enable(lookup, GCC));
  calls.push(guide.callRead("on"), guide.callLookup("on"));
  const stacks = guide.walkStacks(read);
  const cost = guide.measure(leaf);
  const { machine, kernel, ftrace } = lab;
  return {
    sites,
    calls,
    stacks,
    cost,
    machine: {
      instructions: machine.instructions,
      vcpus: machine.vcpus.length,
      tasks: kernel.tasks.length,
      sites: ftrace.records.length,
    },
  };
}

class Guide {
  private readonly lab: Lab;
  private readonly disassembler: Disassembler;
  private readonly buffer: Addr;

  constructor(lab: Lab, disassembler: Disassembler) {
    this.lab = lab;
    this.disassembler = disassembler;
    this.buffer = lab.symbol("read_buffer").address;
  }

  /** Turns a site on, `between` while every task still decides for itself; bytes and listing before and after. */
  enable(redirect: Redirect, from: string, between: () => void = () => {}): SiteFact {
    const { ip, symbol } = redirect.site;
    const before = this.listSite(ip);
    const { kernel } = this.lab;
    // Every task has its state before the first can see the transition.
    for (const task of kernel.tasks) kernel.setPatchState(task, "KLP_UNPATCHED");
    redirect.transition = true;
    redirect.enable();
    between();
    redirect.transition = false;
    for (const task of kernel.tasks) kernel.setPatchState(task, "KLP_UNDEFINED");
    const after = this.listSite(ip);
    return {
      symbol,
      from,
      address: hex(ip),
      bytesBefore: before.bytes,
      bytesAfter: after.bytes,
      listingBefore: before.lines,
      listingAfter: after.lines,
    };
  }

  /** A read of the greeting by the first task, through the table of function pointers. */
  callRead(site: CallFact["site"]): CallFact {
    const vcpu = this.beginRead(this.lab.kernel.tasks[0]!, 0);
    return this.readFact(
      vcpu,
      this.lab.kernel.tasks[0]!,
      site,
      this.watch([vcpu], "mem_read", "mem_read_upper")[0]!,
    );
  }

  /** Two tasks on two vCPUs, instruction by instruction in turn, one of them switched already. */
  callBothInTransition(): CallFact[] {
    const { kernel } = this.lab;
    const [first, second] = kernel.tasks as [Task, Task];
    kernel.setPatchState(first, "KLP_PATCHED");
    const vcpus = [this.beginRead(first, 0), this.beginRead(second, 1)];
    const watched = this.watch(vcpus, "mem_read", "mem_read_upper");
    return [first, second].map((task, n) => this.readFact(vcpus[n]!, task, "in transition", watched[n]!));
  }

  /** The fixture's lookup with an index that only the fixed version refuses. */
  callLookup(site: CallFact["site"]): CallFact {
    const { lab } = this;
    const task = lab.kernel.tasks[0]!;
    const vcpu = lab.begin(lab.symbol("sys_lookup").address, [BAD_INDEX, USER], { task });
    const [watched] = this.watch([vcpu], "lookup_slot", "lookup_slot [lookup_fixed]");
    return this.fact("lookup_slot", "sys_lookup: call (object made by gcc)", task, site, watched!);
  }

  /** Stops inside a redirected call at three places and compares the walk with the truth. */
  walkStacks(read: Redirect): StackFact[] {
    const { lab } = this;
    const frame = (name: string) => offset(lab.symbol(name).address, FRAME_SET_UP);
    const handler = this.walkAt(
      "in the handler, while the call is being redirected",
      lab.symbol("klp_ftrace_handler").address,
    );
    const inside = this.walkAt("inside the new body", frame("mem_read_upper"));
    const entry = this.walkAt("at the new body's first instruction", lab.symbol("mem_read_upper").address);
    read.disable();
    const old = this.walkAt("inside the old body, the site off again", offset(frame("mem_read"), SITE_SIZE));
    return [
      {
        ...handler,
        remark:
          "The handler has no frame, so that the trampoline is missed, whose records are for the functions below it.",
      },
      { ...inside, remark: "The redirect left nothing behind." },
      { ...entry, remark: "Before `mov %rsp,%rbp` the caller is lost: live registers are never reliable." },
      { ...old, remark: "" },
    ];
  }

  /** Instructions of one call, off and on. */
  measure(redirect: Redirect): CostFact {
    const unpatched = this.watchLeaf();
    redirect.enable();
    const redirected = this.watchLeaf();
    return {
      function: "leaf",
      instructionsUnpatched: unpatched.instructions,
      instructionsRedirected: redirected.instructions,
      parts: [...redirected.where].map(([where, instructions]) => ({ where, instructions })),
    };
  }

  private watchLeaf(): Watched {
    const vcpu = this.lab.begin(this.lab.symbol("leaf").address, [1n]);
    return this.watch([vcpu], "leaf", "leaf_new")[0]!;
  }

  private walkAt(where: string, at: Addr): Omit<StackFact, "remark"> {
    const { lab } = this;
    const vcpu = this.beginRead(lab.kernel.tasks[0]!, 0);
    const exit = vcpu.run({ until: at, budget: 10_000 });
    if (exit.kind !== "reached")
      bug(`the tour did not get to ${lab.code.describe(at)}: ${lab.describe(exit)}`);
    const describe = (address: Addr) => lab.code.describe(address);
    const walked = lab.walk(vcpu).frames.map(({ address }) => address);
    const truth = lab.trueReturns(vcpu);
    lab.finish(vcpu);
    return {
      where,
      address: hex(at),
      walked: walked.map(describe),
      true: truth.map(describe),
      equal: walked.length === truth.length && walked.every((address, n) => address === truth[n]),
    };
  }

  private beginRead(task: Task, vcpuIndex: number): Vcpu {
    const { lab } = this;
    const { memory } = lab.machine;
    memory.write(this.buffer, new Uint8Array(READ_SIZE));
    const file = addr(memory.readWord(lab.symbol("files").address));
    new StructView(memory, FILE, file).set("pos", 0);
    const vcpu = lab.machine.vcpus[vcpuIndex]!;
    // Both tasks read at once, each into its half of the buffer.
    const to = offset(this.buffer, vcpuIndex * READ_SIZE);
    return lab.begin(lab.symbol("sys_read").address, [0n, BigInt(to), BigInt(READ_SIZE)], { task, vcpu });
  }

  private readFact(vcpu: Vcpu, task: Task, site: CallFact["site"], watched: Watched): CallFact {
    const bytes = this.lab.machine.memory.read(
      offset(this.buffer, vcpu.index * READ_SIZE),
      Number(watched.result),
    );
    const output = new TextDecoder().decode(bytes);
    return { ...this.fact("mem_read", "sys_read: vfs_read: *file->f_op->read", task, site, watched), output };
  }

  /** Steps the vCPUs in turn until each has finished its call, and notes where every instruction was. */
  private watch(vcpus: readonly Vcpu[], oldName: string, newName: string): Watched[] {
    const running = vcpus.map((vcpu) => ({ vcpu, where: new Map<string, number>(), done: false }));
    while (running.some(({ done }) => !done)) {
      for (const run of running) if (!run.done) run.done = this.stepOnce(run.vcpu, run.where);
    }
    return running.map(({ vcpu, where }) => {
      where.delete("lab_call");
      const entered = (name: string) => (where.get(name) ?? 0) > 0;
      if (!entered(oldName)) bug(`${oldName} was not called`);
      return {
        result: vcpu.get("rax"),
        instructions: [...where.values()].reduce((sum, count) => sum + count, 0),
        version: entered(newName) ? "new" : "old",
        where,
      };
    });
  }

  /** True if that was the end of the call. */
  private stepOnce(vcpu: Vcpu, where: Map<string, number>): boolean {
    const { lab } = this;
    const name = lab.code.describe(vcpu.rip).replace(/\+0x[^ ]*/, "");
    where.set(name, (where.get(name) ?? 0) + 1);
    const exit = vcpu.step();
    if (exit === undefined) return false;
    if (!lab.kernel.returned(exit)) bug(`the tour's call stopped: ${lab.describe(exit)}`);
    return true;
  }

  private fact(name: string, via: string, task: Task, site: CallFact["site"], watched: Watched): CallFact {
    const { version, result, instructions } = watched;
    return {
      function: name,
      via,
      task: task.pid,
      patchState: this.lab.kernel.patchState(task),
      site,
      version,
      result: `0x${result.toString(16)}`,
      instructions,
    };
  }

  private listSite(ip: Addr): { bytes: string; lines: string[] } {
    const bytes = this.lab.machine.memory.read(ip, SITE_SIZE);
    const name = (at: Addr) =>
      this.lab.code
        .describe(at)
        .replace(/\/0x[0-9a-f]+/, "")
        .replace(/\+0x0$/, "");
    return { bytes: hexBytes(bytes), lines: formatLines(this.disassembler.disassemble(bytes, ip, name)) };
  }
}

/** Of the functions that begin with them: push %rbp; mov %rsp,%rbp. In bytes. */
const FRAME_SET_UP = 4;
const READ_SIZE = 64;
