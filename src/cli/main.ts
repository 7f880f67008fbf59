#!/usr/bin/env node
// The `fentrylab` command. Exit status: 0 when what was checked holds, 1 when it does not, 2 on bad input, with
// one line on stderr. With --json one document goes to stdout and nothing else; progress goes to stderr.

import { readFileSync } from "node:fs";
import { Command, CommanderError } from "commander";
import { Refusal } from "../base/refuse.ts";
import { packagePath } from "../guest.ts";
import { printBench } from "./bench.ts";
import { printCall } from "./call.ts";
import { printDemo } from "./demo.ts";
import { printDisassembly } from "./disasm.ts";
import { integer } from "./option.ts";

const program = new Command("fentrylab")
  .description("A laboratory for live-patched x86-64 code.")
  .version(packageVersion())
  .exitOverride()
  .configureOutput({ outputError: (text, write) => write(text.replace(/^error: /, "fentrylab: ")) })
  .showHelpAfterError(false);

command(
  "demo",
  "the guided tour: a site patched, tasks redirected, stacks walked, all of it executed",
).action(printDemo);

command("call", "call one function of an image and print what it returns and how many instructions it took")
  .argument("<image>", "an x86-64 object (.o), or an assembly source (.S)")
  .argument("<function>", "a symbol of the image, or of the laboratory's kernel")
  .argument("[arguments...]", "up to six integers, 0x for hexadecimal")
  .option("--budget <n>", "give up after so many instructions", integer("--budget", 1), 10_000_000)
  .action(printCall);

command("disasm", "list an image's functions, or one of them, as linked")
  .argument("<image>", "an x86-64 object (.o), or an assembly source (.S)")
  .argument("[symbol]", "only this function")
  .action(printDisassembly);

command("bench", "measure: `engine` compares this engine with native Unicorn, where that is installed")
  .argument("[what]", "engine", "engine")
  .option("--rounds <n>", "how often each measurement is taken", integer("--rounds", 1))
  .action(printBench);

try {
  await program.parseAsync();
} catch (error) {
  if (error instanceof Refusal) {
    process.stderr.write(`fentrylab: ${error.message}\n`);
    process.exitCode = 2;
  } else if (error instanceof CommanderError) {
    process.exitCode = error.exitCode === 0 ? 0 : 2;
  } else throw error;
}

/** A subcommand with the options that all have. */
function command(name: string, description: string): Command {
  return program
    .command(name)
    .description(description)
    .option("--json", "one JSON document on stdout")
    .option("--seed <n>", "what every choice follows from", integer("--seed", 0), 0)
    .exitOverride();
}

function packageVersion(): string {
  return (JSON.parse(readFileSync(packagePath("package.json"), "utf8")) as { version: string }).version;
}
