// fentrylab lockstep IMAGE FUNCTION [ARGUMENT...] --against unicorn|host

import { type Addr, addr } from "../base/addr.ts";
import { refuse } from "../base/refuse.ts";
import { word } from "../base/word.ts";
import type { CodeMap } from "../image/codeMap.ts";
import type { Image } from "../image/image.ts";
import { Lab } from "../lab.ts";
import { describeExit } from "../machine/exit.ts";
import type { Machine } from "../machine/machine.ts";
import type { Vcpu } from "../machine/vcpu.ts";
import { openHost } from "../reference/host.ts";
import { type LockstepResult, lockstep } from "../reference/lockstep.ts";
import type { Missing, Reference } from "../reference/reference.ts";
import { openUnicorn } from "../reference/unicorn.ts";
import { adviseExit } from "../report/advice.ts";
import { lockstepDocument, renderLockstep } from "../report/lockstep.ts";
import { RETURN, UserProgram } from "../userProgram.ts";
import { type ImageOptions, loadImage, moduleName } from "./image.ts";
import { type CommonOptions, printJson } from "./option.ts";

interface LockstepCommandOptions extends CommonOptions, ImageOptions {
  readonly against: string;
  readonly limit: number;
}

/** A vCPU at the first instruction of a function, and where that returns to. */
interface Subject {
  readonly machine: Machine;
  readonly vcpu: Vcpu;
  readonly end: Addr;
  readonly code: CodeMap;
}

interface Against {
  readonly open: () => Promise<Reference | Missing>;
  readonly prepare: (
    path: string,
    name: string,
    args: readonly bigint[],
    options: ImageOptions,
  ) => Promise<Subject>;
}

const REFERENCES: Readonly<Record<string, Against>> = {
  unicorn: { open: openUnicorn, prepare: inLab },
  host: { open: openHost, prepare: asProgram },
};

/** False if an instruction differs. */
export async function printLockstep(
  path: string,
  name: string,
  args: readonly string[],
  { json, against, limit, ...others }: LockstepCommandOptions,
): Promise<boolean> {
  const known = Object.keys(REFERENCES).join(", ");
  const chosen = REFERENCES[against] ?? refuse("unknown-reference", { name: against, known });
  const words = args.map(word);
  const subject = await chosen.prepare(path, name, words, others);
  const reference = await chosen.open();
  if ("missing" in reference) return refuse("reference-missing", { name: against, why: reference.missing });
  try {
    const { machine, vcpu, end, code } = subject;
    const result = await lockstep(machine, vcpu, reference, { until: end, limit, onProgress: progress });
    if (process.stderr.isTTY) process.stderr.write("\r\x1b[K");
    const describe = (at: Addr) => code.describe(at);
    const outcome = outcomeOf(result, `${name}(${args.join(", ")})`, subject);
    if (json) {
      const shown = words.map((value) => `0x${value.toString(16)}`);
      const returned = result.ended.kind === "reached" ? { result: `0x${vcpu.get("rax").toString(16)}` } : {};
      const document = lockstepDocument(result, reference.name, describe);
      printJson({ function: name, arguments: shown, ...returned, ...document });
    } else process.stdout.write(renderLockstep(result, reference.name, outcome, describe));
    return result.difference === undefined;
  } finally {
    reference.close();
  }
}

/** How it ended, unless in a difference. Refuses what is neither the function's nor the reference's end. */
function outcomeOf({ ended }: LockstepResult, call: string, { vcpu, code }: Subject): string {
  switch (ended.kind) {
    case "reached": {
      const result = vcpu.get("rax");
      return `${call} = ${BigInt.asIntN(64, result)} (0x${result.toString(16)})`;
    }
    case "limit":
      return `stopped there, before ${code.describe(vcpu.rip)} (--limit)`;
    case "difference":
      return "";
    case "lost":
      return refuse("reference-lost", { why: ended.why });
    case "exit": {
      const what = describeExit(ended.exit, (ip) => code.describe(ip));
      return ended.judged
        ? `both end with ${what}`
        : refuse("call-failed", { what, advice: adviseExit(ended.exit) });
    }
  }
}

/** In the laboratory, at kernel addresses. */
async function inLab(
  path: string,
  name: string,
  args: readonly bigint[],
  options: ImageOptions,
): Promise<Subject> {
  const lab = await Lab.open();
  const image = await loadImage(lab, path, options);
  const target = find(name, image, lab.image);
  const vcpu = lab.begin(target, args);
  vcpu.run({ until: target, budget: 100 });
  // What both fault at is the end: the laboratory's handlers are not what is asked about.
  vcpu.system.setWord("idtLimit", 0n);
  return { machine: lab.machine, vcpu, end: returnAddress(lab.machine, vcpu), code: lab.code };
}

/** As a program of its own, at low addresses. */
async function asProgram(
  path: string,
  name: string,
  args: readonly bigint[],
  options: ImageOptions,
): Promise<Subject> {
  const paths = [...(options.with ?? []), path];
  const program = await UserProgram.open(paths.map((file) => ({ name: moduleName(file), path: file })));
  const { machine, code, image } = program;
  const vcpu = program.begin(find(name, image, code.images[0]!), args);
  return { machine, vcpu, end: RETURN, code };
}

/** An unknown name is the image's to refuse: it suggests one of its own. */
function find(name: string, image: Image, kernel: Image): Addr {
  return (image.find(name) ?? kernel.find(name) ?? image.symbol(name)).address;
}

/** Of a function that has just been called. */
function returnAddress({ memory }: Machine, { rsp }: Vcpu): Addr {
  return addr(memory.readWord(rsp));
}

function progress(steps: number): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${steps} instructions`);
}
