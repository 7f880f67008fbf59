// What a patch changes in the running system beside code, and who may take it over (Linux
// tools/testing/selftests/livepatch/test-state.sh, 6.1).

import { expect } from "vitest";
import { state } from "./patches.ts";
import { scenario } from "./scenario.ts";

scenario("system state modification", "klp-state", (rig) => {
  expect(rig.show("loglevel")).toEqual(["4"]);
  rig.loadLp(state(rig, "klp_state"));
  expect(rig.show("loglevel")).toEqual(["15, says klp_state"]);
  rig.disableLp("klp_state");
  rig.unload("klp_state");
  expect(rig.show("loglevel")).toEqual(["4"]);
});

scenario("taking over system state modification", "klp-state-taken-over", (rig) => {
  rig.loadLp(state(rig, "klp_state"));
  rig.loadLp(state(rig, "klp_state2"));
  expect(rig.show("loglevel")).toEqual(["15, says klp_state2"]);
  rig.unload("klp_state");
  rig.disableLp("klp_state2");
  rig.unload("klp_state2");
  expect(rig.show("loglevel")).toEqual(["4"]);
});

scenario("compatible cumulative livepatches", "klp-state-compatible", (rig) => {
  rig.loadLp(state(rig, "klp_state2"));
  rig.loadLp(state(rig, "klp_state3"));
  expect(rig.show("loglevel")).toEqual(["15, says klp_state3"]);
  rig.unload("klp_state2");
  rig.loadLp(state(rig, "klp_state2"));
  expect(rig.show("loglevel")).toEqual(["15, says klp_state2"]);
  rig.disableLp("klp_state2");
  rig.unload("klp_state2");
  rig.unload("klp_state3");
  expect(rig.show("loglevel")).toEqual(["4"]);
});

scenario("incompatible cumulative livepatches", "klp-state-incompatible", (rig) => {
  rig.loadLp(state(rig, "klp_state2"));
  rig.loadFailingLp(state(rig, "klp_state"));
  expect(rig.show("loglevel")).toEqual(["15, says klp_state2"]);
  rig.disableLp("klp_state2");
  rig.unload("klp_state2");
  expect(rig.show("loglevel")).toEqual(["4"]);
});
