// Writes docs/INSTRUCTIONS.md from what the decoder knows and the lifter can do.

import { mkdirSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../base/file.ts";
import { renderInstructions } from "../report/instructionTable.ts";
import { instructionSet } from "../x86/instructionSet.ts";

const folder = join(PACKAGE_ROOT, "docs");
mkdirSync(folder, { recursive: true });
writeFileSync(join(folder, "INSTRUCTIONS.md"), renderInstructions(instructionSet()));
