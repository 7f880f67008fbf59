// Writes asm/offsets.inc from the descriptions of the structures.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { guestOffsets, PACKAGE_ROOT } from "../guest.ts";

writeFileSync(join(PACKAGE_ROOT, "asm", "offsets.inc"), guestOffsets());
