// Writes asm/offsets.inc and kernel/layout.h from the descriptions of the structures.

import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { PACKAGE_ROOT } from "../base/file.ts";
import { guestHeader, guestOffsets } from "../guest.ts";

writeFileSync(join(PACKAGE_ROOT, "asm", "offsets.inc"), guestOffsets());
writeFileSync(join(PACKAGE_ROOT, "kernel", "layout.h"), guestHeader());
