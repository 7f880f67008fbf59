// Fully patched: where only one thing is left to do at a site it jumps there, without a handler, until the next transition of a
// patch that has a say there. Upstream's handler decides for ever.

import { sameBytes } from "../base/bytes.ts";
import type { FtraceRecord } from "../ftrace/ftrace.ts";
import { bytesOf } from "../ftrace/record.ts";
import { SITE_SIZE } from "../ftrace/site.ts";
import { act, type Step, until } from "../machine/agenda.ts";
import type { Core } from "./core.ts";
import type { FunctionStack } from "./functionStack.ts";
import type { Patch } from "./patch.ts";

export class Settling {
  private readonly core: Core;

  constructor(core: Core) {
    this.core = core;
  }

  /** Has every site jump where a replacement is on top. Nothing must be in transition. */
  settle(): void {
    for (const { ops, functions } of this.core.stacks.all.values()) {
      const [top] = functions;
      if (top !== undefined && !top.isNop) this.core.parts.ftrace.settle(ops, top.place!.new);
    }
  }

  /**
   * The sites that the patch is going to have a say at have a handler again, and no CPU can execute a jump there: `then`. Or one of
   * them cannot be rewritten: `failed`, and all is as it was.
   */
  unsettle(
    patch: Patch,
    then: () => readonly Step[],
    failed: (stuck: FtraceRecord) => readonly Step[],
  ): readonly Step[] {
    const { ftrace, kernel } = this.core.parts;
    const stacks = () => patch.functions.flatMap((func) => this.core.stacks.of(func) ?? []);
    const isStuck = ({ ops }: FunctionStack) => ops.state.value.settled !== undefined;
    return [
      act("handlers decide again", () => {
        for (const { ops } of stacks()) ftrace.settle(ops, undefined);
      }),
      until("no site jumps", () =>
        stacks().every(
          (stack) => ftrace.isDone(stack.ops) && (stack.site.target.kind !== "jump" || isStuck(stack)),
        ),
      ),
      {
        what: "see whether that could be done",
        run: () => {
          const stuck = stacks().filter(isStuck);
          if (stuck.length === 0) return then();
          this.settle();
          // Where one site cannot be rewritten none is: whose it is, its text says.
          const isSpoilt = ({ site: { ip, target } }: FunctionStack) =>
            !sameBytes(kernel.machine.memory.read(ip, SITE_SIZE), bytesOf(ip, target));
          return failed((stuck.find(isSpoilt) ?? stuck[0]!).site);
        },
      },
    ];
  }
}
