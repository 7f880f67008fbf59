// Writes asm/offsets.inc from the descriptions of the structures.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../base/file.ts";
import { guestOffsets } from "../guest.ts";

writeFileSync(join(PACKAGE_ROOT, "asm", "offsets.inc"), guestOffsets());
