// The `fentrylab` command, as a process: arguments in, exit status out.

import { runCommand } from "./program.ts";

process.stdout.on("error", ({ code }: NodeJS.ErrnoException) => {
  // A reader that has seen enough, as in `fentrylab demo | head -1`, is nobody's error.
  if (code !== "EPIPE") {
    process.stderr.write(
      `fentrylab: stdout cannot be written (${code}); free some space or write elsewhere\n`,
    );
    process.exitCode = 2;
  }
  process.exit();
});

const status = await runCommand(process.argv.slice(2));
if (status !== 0) process.exitCode = status;
