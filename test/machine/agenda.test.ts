// Strands of steps: one at a time while everybody runs, all at once otherwise, and back with a snapshot.

import { beforeEach, describe, expect, test } from "vitest";
import { Agenda, type Step } from "../../src/machine/agenda.ts";
import { Kept } from "../../src/machine/kept.ts";
import { Machine } from "../../src/machine/machine.ts";

let machine: Machine;
let agenda: Agenda;
let done: Kept<readonly string[]>;
beforeEach(() => {
  machine = new Machine({ vcpus: 1 });
  agenda = new Agenda(machine.keeper);
  done = new Kept<readonly string[]>(machine.keeper, []);
});

/** A step that notes that it is done, and puts others in its place. */
const step = (what: string, more?: () => readonly Step[], ready?: () => boolean): Step => ({
  what,
  ...(ready === undefined ? {} : { ready }),
  run: () => {
    done.value = [...done.value, what];
    return more?.();
  },
});

describe("where nobody runs", () => {
  test("everything is done at once, in order, steps of steps first", () => {
    agenda.add("a", [step("1", () => [step("1.1", () => [step("1.1.1")]), step("1.2")]), step("2")]);
    expect(done.value).toEqual(["1", "1.1", "1.1.1", "1.2", "2"]);
    expect(agenda.isEmpty).toBe(true);
  });

  test("what a step adds to its own strand comes behind the rest; to another, by itself", () => {
    const add = () => {
      agenda.add("a", [step("behind")]);
      agenda.add("b", [step("beside")]);
      return [step("at once")];
    };
    agenda.add("a", [step("1", add), step("2")]);
    expect(done.value).toEqual(["1", "at once", "2", "behind", "beside"]);
  });

  test("what is not ready waits, with all behind it, until it is asked again", () => {
    let open = false;
    agenda.add("a", [step("1"), step("2", undefined, () => open), step("3")]);
    agenda.add("b", [step("4")]);
    expect(done.value).toEqual(["1", "4"]);
    expect(agenda.pending).toEqual([{ strand: "a", what: "2" }]);
    open = true;
    agenda.finish();
    expect(done.value).toEqual(["1", "4", "2", "3"]);
  });
});

describe("while everybody runs", () => {
  beforeEach(() => {
    agenda.live = true;
  });

  test("nothing is done but by `step`, a step of a strand at a time", () => {
    agenda.add("a", [step("a1", () => [step("a1.1")]), step("a2")]);
    agenda.add("b", [step("b1")]);
    agenda.finish();
    expect(done.value).toEqual([]);
    expect(agenda.ready()).toEqual(["a", "b"]);
    for (const name of ["a", "b", "a", "a"]) agenda.step(name);
    expect(done.value).toEqual(["a1", "b1", "a1.1", "a2"]);
    expect(agenda.isEmpty).toBe(true);
    agenda.step("a");
    expect(done.value.length).toBe(4);
  });

  test("only strands are ready whose next step is", () => {
    let open = false;
    agenda.add("a", [step("1", undefined, () => open)]);
    agenda.add("b", [step("2")]);
    expect(agenda.ready()).toEqual(["b"]);
    open = true;
    expect(agenda.ready()).toEqual(["a", "b"]);
  });

  test("how far it has come goes back with a snapshot", () => {
    agenda.add("a", [step("1"), step("2"), step("3")]);
    agenda.step("a");
    const before = machine.snapshot();
    agenda.step("a");
    agenda.add("b", [step("other")]);
    machine.restore(before);
    expect(agenda.pending).toEqual([{ strand: "a", what: "2" }]);
    expect(done.value).toEqual(["1"]);
    agenda.live = false;
    agenda.finish();
    expect(done.value).toEqual(["1", "2", "3"]);
  });
});
