// Every command with its arguments and options, and how a run of one ends.
//
// Exit status: 0 when what was checked holds, 1 when it does not, 2 on bad input, with one line on stderr.
// With --json one document goes to stdout and nothing else; progress goes to stderr.

import { readFileSync } from "node:fs";
import { Command, CommanderError, Option } from "commander";
import { packagePath } from "../base/file.ts";
import { Refusal, refuse } from "../base/refuse.ts";
import { DEFAULT_SETTINGS, MAX_COPIES, MAX_VCPUS } from "../explore/settings.ts";
import { LOG_LEVELS, WEAKENINGS } from "../livepatch/options.ts";
import { integer } from "./option.ts";

/** Runs the command line `args`, without the program's name, and returns the exit status. */
export async function runCommand(args: readonly string[]): Promise<number> {
  let status = 0;
  try {
    await parse(
      createProgram((held) => {
        status = held ? 0 : 1;
      }),
      args,
    );
    return status;
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    process.stderr.write(`fentrylab: ${error.message}\n`);
    return 2;
  }
}

async function parse(program: Command, args: readonly string[]): Promise<void> {
  try {
    await program.parseAsync(args, { from: "user" });
  } catch (error) {
    if (!(error instanceof CommanderError)) throw error;
    if (error.exitCode === 0) return; // --help and --version
    // Without a command, or asked for help on one that it does not have, commander shows all its help instead.
    if (error.code === "commander.help") refuse("no-command", {});
    const named = program.commands.find((command) => command.name() === args[0]);
    const help = ["fentrylab", ...(named ? [named.name()] : []), "--help"].join(" ");
    refuse("usage", { problem: error.message.replace(/^error: /, "").replace(/\.$/, ""), help });
  }
}

// Commands are imported when they run: help and mistakes need none of the engine. Those that check something say
// to `checked` whether it held.
function createProgram(checked: (held: boolean) => void): Command {
  const program = new Command("fentrylab")
    .description("A laboratory for live-patched x86-64 code. Begin with `fentrylab demo`.")
    .version(packageVersion())
    .exitOverride()
    .configureOutput({ writeErr: () => {} }); // `parse` says it, in one line

  addCommand(
    program,
    "demo",
    "The guided tour: call sites patched, tasks redirected, stacks walked, all executed.",
  ).action(async (options) => (await import("./demo.ts")).printDemo(options));

  addCommand(
    program,
    "call",
    "Call one function of an image; print what it returns and the instructions it took.",
  )
    .argument("<image>", IMAGE)
    .argument("<function>", FUNCTION)
    .argument("[arguments...]", ARGUMENTS)
    .option("--with <file>", WITH, collect)
    .option("--budget <n>", "give up after so many instructions", integer("--budget", 1), 10_000_000)
    .action(async (image, name, words, options) =>
      (await import("./call.ts")).printCall(image, name, words, options),
    );

  addCommand(program, "disasm", "List an image's functions, or one of them, as linked into module space.")
    .argument("<image>", IMAGE)
    .argument("[function]", "only this one")
    .option("--with <file>", WITH, collect)
    .action(async (image, name, options) =>
      (await import("./disasm.ts")).printDisassembly(image, name, options),
    );

  addCommand(
    program,
    "orc",
    "List the ORC entries of an image: how a stack is unwound at each of its instructions.",
  )
    .argument("<image>", IMAGE)
    .argument("[function]", "only this one")
    .option("--with <file>", WITH, collect)
    .option("--generate", "from the code, even if the image brings ORC sections along")
    .action(async (image, name, options) =>
      checked(await (await import("./orc.ts")).printOrc(image, name, options)),
    );

  addCommand(
    program,
    "audit",
    "Hold an unwinder against the true stack at every instruction boundary of what is executed.",
  )
    .option("--unwinder <which>", "`orc`, `frame`, `guess`, or a .js file whose default export is one", "orc")
    .option("--mode <mode>", "walk `at-rest`, `preempted`, or `both`", "both")
    .option(
      "--image <file>",
      "audit this object or source instead of what is built in; may be repeated",
      collect,
    )
    .option(
      "--call <call>",
      'a function of the image with its arguments, as in "tail 20"; may be repeated',
      collect,
    )
    .option("--patients", "audit a run of the kernel with all its patients instead, chosen by --seed")
    .option("--vcpus <n>", "of that run", integer("--vcpus", 1, MAX_VCPUS), DEFAULT_SETTINGS.vcpus)
    .option("--budget <n>", "end that run after so many instructions", integer("--budget", 1), 10_000_000)
    .action(async (options) => checked(await (await import("./audit.ts")).printAudit(options)));

  addCommand(
    program,
    "check-trampoline",
    "Hold a trampoline of yours against its contract: register states, every boundary, a copy elsewhere.",
  )
    .argument("<file>", "a source (.S) that calls `trampoline_handler` with `trampoline_ops`")
    .option("--regs", "it fills in the whole pt_regs, as ftrace_regs_caller; otherwise as ftrace_caller")
    .option("--ipmodify", "it follows a changed regs->ip, as ftrace_ipmodify_caller; implied by --regs")
    .option("--cases <n>", "register states to try", integer("--cases", 1, MAX_CASES), 2000)
    .action(async (file, options) =>
      checked(await (await import("./checkTrampoline.ts")).printTrampolineCheck(file, options)),
    );

  addCommand(
    program,
    "lockstep",
    "Call one function here and elsewhere, instruction by instruction; print the first difference.",
  )
    .argument("<image>", IMAGE)
    .argument("<function>", FUNCTION)
    .argument("[arguments...]", ARGUMENTS)
    .requiredOption("--against <reference>", "native `unicorn`, or the `host`'s own processor")
    .option("--with <file>", WITH, collect)
    .option("--limit <n>", "stop after so many instructions", integer("--limit", 1), 10_000_000)
    .action(async (image, name, words, options) =>
      checked(await (await import("./lockstep.ts")).printLockstep(image, name, words, options)),
    );

  shownOptions(
    addCommand(
      program,
      "run",
      "Run the kernel with its patients, every choice by seed, and hold it against its invariants.",
    )
      .option(
        "--vcpus <n>",
        "how many vCPUs, 1 to 8",
        integer("--vcpus", 1, MAX_VCPUS),
        DEFAULT_SETTINGS.vcpus,
      )
      .option(
        "--copies <n>",
        "of each user task",
        integer("--copies", 1, MAX_COPIES),
        DEFAULT_SETTINGS.copies,
      )
      .option("--rounds <n>", "that each patient does", integer("--rounds", 1), DEFAULT_SETTINGS.rounds)
      .option(
        "--budget <n>",
        "end after so many instructions",
        integer("--budget", 1),
        DEFAULT_SETTINGS.budget,
      )
      .option(
        "--every <n>",
        "check the invariants after so many slices; 0 for never",
        integer("--every", 0),
        DEFAULT_SETTINGS.every,
      )
      .option("--seeds <n>", "so many runs, from --seed on, to the first finding", integer("--seeds", 1), 1)
      .option("--patches", "enable and disable live patches meanwhile, at random")
      .addOption(
        new Option(
          "--weaken <what...>",
          "with --patches: turn an order of writes round, or leave a precaution out, to see what comes of it",
        )
          .choices(WEAKENINGS)
          .default([], "nothing"),
      )
      .addOption(
        new Option("--log-level <level>", "of live patching's messages, the least weighty that are logged")
          .choices(LOG_LEVELS)
          .default(DEFAULT_SETTINGS.logLevel),
      )
      .option("--record <file>", "write down the last run, for `fentrylab replay`"),
  ).action(async (options) => checked(await (await import("./run.ts")).printRun(options)));

  shownOptions(
    addCommand(program, "replay", "Repeat a run that was written down, choice by choice.").argument(
      "<file>",
      "what `fentrylab run --record` wrote",
    ),
  ).action(async (file, options) => checked(await (await import("./run.ts")).printReplay(file, options)));

  addCommand(
    program,
    "poke",
    "Explore every interleaving of rewriting one call site with vCPUs that call through it.",
  )
    .option(
      "--writer <which>",
      "`breakpoint` (default), or one that is wrong: `whole`, `halves`, `tail-first`",
    )
    .option("--vcpus <n>", "how many call; first 1, then 2 if not given", integer("--vcpus", 1, MAX_VCPUS))
    .option("--calls <n>", "that each makes; 2 if not given", integer("--calls", 1))
    .option("--way <way>", "the site is turned `on`, `off`, or `both`, one after the other (default)")
    .option("--record <file>", "write down the way to what was found, or the longest one")
    .option("--replay <file>", "go a way that was written down again")
    .action(async (options) => checked(await (await import("./poke.ts")).printPoke(options)));

  addCommand(
    program,
    "bench",
    "Measure this engine, against native Unicorn where that is installed; redirected calls; walks; runs; memory.",
  )
    .argument(
      "[what]",
      "`engine`, `redirect` for what calls cost, counted, `unwind`, `transition` of up to 10,000 sleeping tasks, `runs` of the kernel with its patients, or `resources` for memory held and given back",
      "engine",
    )
    .option("--rounds <n>", "how often each measurement is taken", integer("--rounds", 1))
    .action(async (what, options) => (await import("./bench.ts")).printBench(what, options));

  return program;
}

/** More would not end within patience. */
const MAX_CASES = 1_000_000;
const IMAGE = "an x86-64 object (.o), or an assembly source (.S)";
const FUNCTION = "a symbol of the image, or else of the laboratory's kernel";
const ARGUMENTS = "up to six integers, decimal or 0x hexadecimal; write -- before a -0x one";
const WITH = "load this image first, for the symbols that it defines; may be repeated, in order";

/** A subcommand with the options that all have. */
function addCommand(program: Command, name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option("--json", "one JSON document on stdout")
    .option("--seed <n>", "the seed of every choice that is made for you", integer("--seed", 0), 0);
}

/** What else of a run is looked at and shown. */
function shownOptions(command: Command): Command {
  return command
    .option("--log", "show the kernel's log")
    .option("--tasks", "show all tasks and their stacks at the end, as sysrq-t does");
}

function collect(value: string, earlier: readonly string[] = []): string[] {
  return [...earlier, value];
}

function packageVersion(): string {
  return (JSON.parse(readFileSync(packagePath("package.json"), "utf8")) as { version: string }).version;
}
