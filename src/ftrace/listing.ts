// How ftrace shows its records, as tracing/enabled_functions and the kernel's log do (Linux kernel/trace/ftrace.c, 6.1).

import { type Addr, hex } from "../base/addr.ts";
import { hexBytes } from "../base/bytes.ts";
import type { FtraceRecord, Target } from "./record.ts";
import type { PokeFailure } from "./textPoke.ts";

/** An address in words, or that of a symbol, as %pS has it. */
export type Name = (at: Addr | "ftrace_ops_list_func" | "ftrace_ops_assist_func") => string;

/** The lines of `enabled_functions`: who is called where, and how. */
export function enabledFunctions(records: readonly FtraceRecord[], name: Name): string[] {
  return records.filter(({ target }) => target.kind !== "nop").flatMap((record) => recordLines(record, name));
}

function recordLines(record: FtraceRecord, name: Name): string[] {
  const { symbol, module, target, callers } = record;
  const place = module === "vmlinux" ? symbol : `${symbol} [${module}]`;
  const direct = callers.find((ops) => ops.direct !== undefined)?.direct;
  return [
    `${place}${letters(record)}${calls(target, name)}`.trimEnd(),
    ...(direct === undefined ? [] : [`\tdirect-->${name(direct)}`]),
    // Upstream has no such sites: fully patched, they go to the new function without a handler.
    ...(target.kind === "jump" ? [`\tjump-->${name(target.to)}`] : []),
  ];
}

/** How many want to be called; R: registers are saved; I: somebody changes where it goes on; D: something is called directly. */
function letters(record: FtraceRecord): string {
  const letter = (flag: Parameters<FtraceRecord["has"]>[0], text: string) =>
    record.has(flag) ? ` ${text}` : "  ";
  return (
    ` (${record.count})` +
    letter("FTRACE_OPS_FL_SAVE_REGS", "R") +
    letter("FTRACE_OPS_FL_IPMODIFY", "I") +
    letter("FTRACE_OPS_FL_DIRECT", "D")
  );
}

/** A trampoline of one ops, with the handler that the ops has and the one that the trampoline calls; or what a shared one calls. */
function calls(target: Target, name: Name): string {
  if (target.kind !== "call") return "";
  const { by, to } = target;
  if (by === undefined) return ` ->${name("ftrace_ops_list_func")}`;
  if (by.direct !== undefined) return "";
  const called = name(by.has("FTRACE_OPS_FL_RECURSION") ? "ftrace_ops_assist_func" : by.func);
  return `\ttramp: ${name(to)} (${name(by.func)}) ->${called}`;
}

/** What the kernel logs of a site that cannot be made `wanted`. */
export function bugLines(
  record: FtraceRecord,
  { found, expected }: PokeFailure,
  wanted: Target,
  name: Name,
): string[] {
  const bytes = (of: Uint8Array) => hexBytes(of).replaceAll(" ", ":");
  return [
    "------------[ ftrace bug ]------------",
    "ftrace failed to modify",
    `[<${hex(record.ip).slice(2)}>] ${name(record.ip)}`,
    ` actual:   ${bytes(found)}`,
    ` expected: ${bytes(expected)}`,
    whatFor(record.target, wanted),
    `ftrace record flags: ${record.flags.toString(16)}`,
    letters(record).trimEnd(),
    ...(wanted.kind === "nop" ? [] : [` expected tramp: ${hex(wanted.to).slice(2)}`]),
  ];
}

function whatFor(from: Target, wanted: Target): string {
  if (wanted.kind === "nop") return "Setting ftrace call site to NOP";
  return from.kind === "nop"
    ? "Setting ftrace call site to call ftrace function"
    : "Updating ftrace call site to call a different ftrace function";
}
