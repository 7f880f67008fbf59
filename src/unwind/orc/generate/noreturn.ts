// Which functions never return: code behind a call of one is not reached by it.
//
// Of functions elsewhere only the name tells; of those at hand, whether they have a return or leave for one that has.

import type { Addr } from "../../../base/addr.ts";
import type { Operand } from "../../../x86/decode.ts";
import type { Effects } from "../../../x86/effects.ts";
import { type Code, type CodeFunction, isCold } from "./code.ts";

/** The kernel's functions that are declared so and that modules and other objects call (Linux 6.1 and 6.12). */
const NORETURN_NAMES: ReadonlySet<string> = new Set([
  ...["panic", "nmi_panic_self_stop", "panic_smp_self_stop", "lbug_with_loc", "__reiserfs_panic"],
  ...["do_exit", "do_group_exit", "do_task_dead", "make_task_dead", "rewind_stack_and_make_dead"],
  ...["kthread_exit", "kthread_complete_and_exit", "__module_put_and_kthread_exit"],
  ...["kunit_try_catch_throw", "__kunit_abort"],
  ...["__stack_chk_fail", "fortify_panic", "__fortify_panic", "usercopy_abort", "__invalid_creds"],
  ...["__ubsan_handle_builtin_unreachable", "rust_begin_unwind", "rust_helper_BUG"],
  ...["start_kernel", "rest_init", "arch_call_rest_init", "cpu_startup_entry", "cpu_bringup_and_idle"],
  ...["x86_64_start_kernel", "x86_64_start_reservations", "xen_start_kernel", "xen_cpu_bringup_again"],
  ...["stop_this_cpu", "hlt_play_dead", "arch_cpu_idle_dead", "mpt_halt_firmware", "machine_real_restart"],
  ...["ex_handler_msr_mce", "sev_es_terminate", "snp_abort", "hv_ghcb_terminate"],
]);

export class Noreturns {
  private readonly code: Code;
  private readonly known = new Map<CodeFunction, boolean>();

  constructor(code: Code) {
    this.code = code;
  }

  /** Whether a call of `target` comes back. */
  returns(target: Addr): boolean {
    const func = this.code.functionStartingAt(target);
    const name = func?.name ?? this.code.parts.nameOf(target);
    if (name !== undefined && NORETURN_NAMES.has(name)) return false;
    return func === undefined || this.functionReturns(func);
  }

  private functionReturns(func: CodeFunction): boolean {
    if (func.weak) return true;
    const known = this.known.get(func);
    if (known !== undefined) return known;
    this.known.set(func, true); // of two that jump to one another
    const returns = this.code.partsOf(func).some((part) => this.leaves(part));
    this.known.set(func, returns);
    return returns;
  }

  /** Whether an instruction of `part` returns, or jumps to what does, or to somewhere unknown. */
  private leaves(part: CodeFunction): boolean {
    for (let at = part.address; at < part.address + part.size; ) {
      const step = this.code.step(at);
      if (step === undefined) return true;
      const { flow } = step.effects;
      if (flow === "return") return true;
      if (flow === "indirect-jump" && step.instruction.memory?.index === undefined) return true;
      if (this.jumpsAway(part, step.instruction.operands[0], flow)) return true;
      at = step.instruction.next;
    }
    return false;
  }

  private jumpsAway(part: CodeFunction, operand: Operand | undefined, flow: Effects["flow"]): boolean {
    if (operand?.kind !== "target" || (flow !== "jump" && flow !== "conditional-jump")) return false;
    const to = this.code.functionAt(operand.at);
    if (to === undefined) return !NORETURN_NAMES.has(this.code.parts.nameOf(operand.at) ?? "");
    return to.whole !== part.whole && !isCold(to) && this.functionReturns(to);
  }
}
