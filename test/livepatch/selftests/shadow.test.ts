// Shadow variables, by guest code alone (Linux tools/testing/selftests/livepatch/test-shadow-vars.sh, 6.1). The module says
// itself what it expected and did not find.

import { expect } from "vitest";
import { scenario } from "./scenario.ts";

scenario("basic shadow variable API", "klp-shadow", (rig) => {
  rig.loadMod("klp_shadow");
  rig.unload("klp_shadow");
  expect(rig.lines.filter((line) => line.includes("expected"))).toEqual([]);
});
