// What the log says when a run cannot go on: the kernel's own words for it (Linux arch/x86/mm/fault.c, kernel/watchdog.c).

import { PAGE_SIZE } from "../base/addr.ts";
import { PAGE_FAULT } from "../machine/exit.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import type { Dumper } from "./dump.ts";
import type { TakenException } from "./exception.ts";
import type { Kernel } from "./kernel.ts";
import type { Hang } from "./watchdog.ts";

/** What an exception is called. Without an entry it is by its own name. */
const TITLES: Readonly<Record<string, string>> = {
  "#DE": "divide error",
  "#DB": "debug",
  "#BP": "int3",
  "#OF": "overflow",
  "#BR": "bounds",
  "#UD": "invalid opcode",
  "#NM": "device not available",
  "#DF": "double fault",
  "#TS": "invalid TSS",
  "#NP": "segment not present",
  "#SS": "stack segment",
  "#GP": "general protection fault",
};
const BUILD = "PREEMPT SMP";

export class OopsWriter {
  private readonly kernel: Kernel;
  private readonly dumper: Dumper;
  private readonly modules: () => readonly string[];

  /** `modules` are the names of those that are loaded. */
  constructor(kernel: Kernel, dumper: Dumper, modules: () => readonly string[]) {
    this.kernel = kernel;
    this.dumper = dumper;
    this.modules = modules;
  }

  /** An exception that the kernel has no way on from. */
  exception(vcpu: Vcpu, { fault, regs }: TakenException): string[] {
    const code = "errorCode" in fault ? fault.errorCode & 0xffff : 0;
    const number = code.toString(16).padStart(4, "0");
    const title = TITLES[fault.vector] ?? fault.vector;
    const head =
      fault.vector === "#PF"
        ? [...pageFault(fault.address, code), `Oops: ${number} [#1] ${BUILD}`]
        : [`${title}: ${number} [#1] ${BUILD}`];
    return [
      ...head,
      this.cpuLine(vcpu),
      ...this.dumper.registers(regs),
      ...control(vcpu),
      ...this.dumper.from(vcpu, regs),
      this.modulesLine(),
      "---[ end trace 0000000000000000 ]---",
    ];
  }

  /** The kernel has found something that cannot be; or it went where nothing is. */
  panic(vcpu: Vcpu, text: string): string[] {
    const head = `Kernel panic - not syncing: ${text}`;
    return [head, this.cpuLine(vcpu), ...this.dumper.running(vcpu), `---[ end ${head} ]---`];
  }

  hang({ what, text, cpu, task }: Hang): string[] {
    if (what === "hung task") return [text, ...this.dumper.task(task)];
    const vcpu = this.kernel.machine.vcpus[cpu]!;
    return [text, this.modulesLine(), this.cpuLine(vcpu), ...this.dumper.running(vcpu)];
  }

  private cpuLine(vcpu: Vcpu): string {
    const task = this.kernel.current(vcpu);
    return `CPU: ${vcpu.index} PID: ${task?.pid ?? 0} Comm: ${task?.comm ?? "none"} Not tainted fentrylab`;
  }

  private modulesLine(): string {
    return ["Modules linked in:", ...this.modules()].join(" ");
  }
}

function pageFault(address: number, code: number): string[] {
  const at = BigInt.asUintN(64, BigInt(address)).toString(16).padStart(16, "0");
  const how =
    code & PAGE_FAULT.fetch ? "instruction fetch" : code & PAGE_FAULT.write ? "write access" : "read access";
  const why = code & PAGE_FAULT.present ? "permissions violation" : "not-present page";
  return [
    address >= 0 && address < PAGE_SIZE
      ? `BUG: kernel NULL pointer dereference, address: ${at}`
      : `BUG: unable to handle page fault for address: ${at}`,
    `#PF: ${code & PAGE_FAULT.user ? "user" : "supervisor"} ${how} in kernel mode`,
    `#PF: error_code(0x${code.toString(16).padStart(4, "0")}) - ${why}`,
  ];
}

/** Segments and control registers, as the CPU has them. */
function control({ system, gsBase, fsBase }: Vcpu): string[] {
  const hex = (value: bigint, digits: number) => value.toString(16).padStart(digits, "0");
  const long = (name: Parameters<typeof system.getWord>[0]) => hex(system.getWord(name), 16);
  const short = (name: Parameters<typeof system.getWord>[0]) => hex(system.getWord(name), 4);
  return [
    `FS:  ${hex(fsBase, 16)}(${short("fs")}) GS:${hex(gsBase, 16)}(${short("gs")}) knlGS:${long("kernelGsBase")}`,
    `CS:  ${short("cs")} DS: ${short("ds")} ES: ${short("es")} CR0: ${long("cr0")}`,
    `CR2: ${long("cr2")} CR3: ${long("cr3")} CR4: ${long("cr4")}`,
  ];
}
