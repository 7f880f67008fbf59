// Who cannot be called at the same site.

import type { Addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import type { FtraceOps } from "./ops.ts";
import type { FtraceRecord } from "./record.ts";

/** At most one ops changes where a site goes on, and one is called directly; that one has to cope with the other. */
export function refuseConflicts(ops: FtraceOps, at: (ip: Addr) => FtraceRecord | undefined): void {
  const [ipmodify, direct] = [ops.has("FTRACE_OPS_FL_IPMODIFY"), ops.has("FTRACE_OPS_FL_DIRECT")];
  if (!ipmodify && !direct) return;
  const { sites, filter } = ops.state.value;
  if (filter.length === 0) refuse("ops-without-filter", { ops: ops.name });
  for (const ip of sites) {
    const record = at(ip);
    for (const other of record?.callers ?? []) {
      if (other === ops) continue;
      const names = { func: record?.symbol ?? "", ops: ops.name, other: other.name };
      if (ipmodify && other.has("FTRACE_OPS_FL_IPMODIFY")) refuse("ipmodify-twice", names);
      if (direct && other.has("FTRACE_OPS_FL_DIRECT")) refuse("direct-twice", names);
      const isPair = other.has(ipmodify ? "FTRACE_OPS_FL_DIRECT" : "FTRACE_OPS_FL_IPMODIFY");
      if (isPair && !(ipmodify ? other : ops).sharesIpmodify) refuse("ipmodify-direct", names);
    }
  }
}
