// Call sites: NOPs after boot, five bytes back and forth, and refusals that change nothing.

import { beforeEach, describe, expect, test } from "vitest";
import { type Addr, addr, offset } from "../../src/base/addr.ts";
import { hexBytes } from "../../src/base/bytes.ts";
import { packagePath } from "../../src/base/file.ts";
import { callBytes, jumpBytes, NOP5, SITE_SIZE, targetOf } from "../../src/ftrace/site.ts";
import { Lab } from "../../src/lab.ts";
import { decode, Mnemonic } from "../../src/x86/decode.ts";

let lab: Lab;
beforeEach(async () => {
  lab = await Lab.open();
});

const siteBytes = (at: Addr) => lab.machine.memory.read(at, SITE_SIZE);
const allText = () =>
  lab.image.segments
    .filter(({ execute }) => execute)
    .map(({ address, size }) => hexBytes(lab.machine.memory.read(address, size)));
const redirectLeaf = () => lab.redirect("leaf", lab.symbol("leaf_new").address);

/** Where the call at `site` goes, as iced-x86 decodes it. */
function calledBy(site: Addr): Addr {
  const decoded = decode(siteBytes(site), site);
  if (decoded.kind !== "instruction") return expect.fail("no instruction");
  const { mnemonic, operands, length } = decoded.instruction;
  expect([mnemonic, length]).toEqual([Mnemonic.Call, SITE_SIZE]);
  return operands[0]?.kind === "target" ? operands[0].at : expect.fail("no near call");
}

test("a call or jump says where it goes, a NOP goes nowhere", () => {
  const [site, to] = [addr(0xffffffff81000000n), addr(0xffffffffa0000010n)];
  expect([callBytes(site, to), jumpBytes(site, to)].map((bytes) => targetOf(site, bytes))).toEqual([to, to]);
  expect(targetOf(site, NOP5)).toBeUndefined();
});

describe("booting", () => {
  test("makes a NOP of every recorded call of __fentry__, and of nothing else", () => {
    const fentry = lab.symbol("__fentry__").address;
    const [text] = lab.image.segments.filter(({ execute }) => execute);
    const expected = text!.bytes.slice();
    for (const ip of lab.image.mcountLocations) {
      expect(hexBytes(lab.image.bytes(ip, SITE_SIZE))).toBe(hexBytes(callBytes(ip, fentry)));
      expected.set(NOP5, ip - text!.address);
    }
    expect(allText()).toEqual([hexBytes(expected)]);
    expect(lab.ftrace.records.map(({ ip }) => ip)).toEqual(lab.image.mcountLocations);
    expect(lab.ftrace.records.every(({ ops }) => ops === undefined)).toBe(true);
  });

  test("does the same to a module's", async () => {
    const withFixture = await Lab.open({ objects: [packagePath("fixtures/lookup_buggy.o")] });
    const module = await withFixture.loadModule("lookup_fixed", [packagePath("fixtures/lookup_fixed.o")]);
    expect(module.mcountLocations.length).toBeGreaterThan(0);
    for (const ip of module.mcountLocations)
      expect(hexBytes(withFixture.machine.memory.read(ip, SITE_SIZE))).toBe("0f 1f 44 00 00");
  });

  test("makes NOPs that a decoder takes for one instruction", () => {
    for (const { ip } of lab.ftrace.records) {
      const decoded = decode(siteBytes(ip), ip);
      expect(decoded).toMatchObject({
        kind: "instruction",
        instruction: { mnemonic: Mnemonic.Nop, length: SITE_SIZE },
      });
    }
  });
});

describe("a site", () => {
  test("calls its trampoline while it is on; afterwards all text is as it was", () => {
    const redirect = redirectLeaf();
    const before = allText();
    for (let round = 0; round < 3; round++) {
      redirect.enable();
      expect(calledBy(redirect.site.ip)).toBe(redirect.ops.trampoline!.address);
      expect(redirect.site.ops).toBe(redirect.ops);
      expect(lab.call("leaf", [1]).result).toBe(101n);
      redirect.disable();
      expect(allText()).toEqual(before);
      expect(redirect.site.ops).toBeUndefined();
      expect(lab.call("leaf", [1]).result).toBe(2n);
    }
  });

  test("is rewritten also where its code runs compiled", () => {
    const redirect = redirectLeaf();
    for (let round = 0; round < 3; round++) {
      expect(lab.call("loop", [2000]).result).toBe((2000n * 2001n) / 2n + 2000n);
      redirect.enable();
      expect(lab.call("loop", [2000]).result).toBe((2000n * 2001n) / 2n + 200000n);
      redirect.disable();
    }
    const { activeCount, keptCount } = lab.machine.regions; // the last rewrite may have retired all
    expect(activeCount + keptCount).toBeGreaterThan(0);
  });

  test("keeps every other byte: two sites on and off in either order", () => {
    const before = allText();
    const [leaf, read] = [redirectLeaf(), lab.redirect("mem_read", lab.symbol("mem_read_upper").address)];
    for (const [first, second] of [
      [leaf, read],
      [read, leaf],
    ] as const) {
      leaf.enable();
      read.enable();
      expect(leaf.ops.trampoline!.address).not.toBe(read.ops.trampoline!.address);
      expect(lab.call("leaf", [1]).result).toBe(101n);
      first.disable();
      second.disable();
      expect(allText()).toEqual(before);
    }
  });
});

describe("refused, with nothing changed:", () => {
  const refusal = (code: string) => expect.objectContaining({ name: "Refusal", code });

  function unchanged(act: () => void, code: string) {
    const before = allText();
    const records = lab.ftrace.records.map(({ ip, ops }) => [ip, ops]);
    expect(act).toThrow(refusal(code));
    expect(allText()).toEqual(before);
    expect(lab.ftrace.records.map(({ ip, ops }) => [ip, ops])).toEqual(records);
  }

  test("to redirect what is redirected", () => {
    const redirect = redirectLeaf();
    redirect.enable();
    unchanged(() => redirect.enable(), "ops-registered");
    unchanged(() => redirectLeaf().enable(), "ipmodify-twice");
    redirect.disable();
    unchanged(() => redirect.disable(), "ops-not-registered");
  });

  test("to enable a site that is on, and to disable one that is off", () => {
    const { ftrace } = lab;
    const { site } = redirectLeaf();
    const makeOps = (name: string) => ftrace.makeOps({ name, handler: lab.symbol("ftrace_stub").address });
    unchanged(() => ftrace.disable(site), "site-is-off");
    ftrace.enable(site, makeOps("first"));
    unchanged(() => ftrace.enable(site, makeOps("second")), "site-is-on");
    ftrace.disable(site);
  });

  test.each([0, 1, 4])("to enable or disable a site whose byte %i is not as expected", (n) => {
    const redirect = redirectLeaf();
    const spoil = () => {
      const place = offset(redirect.site.ip, n);
      const byte = lab.machine.memory.read(place, 1);
      lab.machine.memory.write(
        place,
        byte.map((value) => value ^ 1),
      );
    };
    spoil();
    unchanged(() => redirect.enable(), "site-bytes");
    spoil();
    redirect.enable();
    spoil();
    unchanged(() => redirect.disable(), "site-bytes");
    spoil();
    redirect.disable();
  });

  test("a function without a site", () => {
    unchanged(() => lab.redirect("leaf_new", lab.symbol("leaf").address), "no-fentry");
    unchanged(() => lab.redirect("klp_ftrace_handler", lab.symbol("leaf").address), "no-fentry");
  });

  test("an image whose recorded site holds no call of __fentry__", () => {
    // Its sites are NOPs already.
    unchanged(() => lab.ftrace.addImage(lab.image), "site-bytes");
  });

  test("a call out of reach, either way", () => {
    const site = addr(0xffffffff81000000n);
    const reach = 2 ** 31;
    for (const displacement of [reach - 1, -reach]) {
      const bytes = callBytes(site, offset(site, displacement + SITE_SIZE));
      expect(new DataView(bytes.buffer).getInt32(1, true)).toBe(displacement);
    }
    for (const displacement of [reach, -reach - 1])
      expect(() => callBytes(addr(0), addr(displacement + SITE_SIZE))).toThrow(refusal("call-range"));
  });

  test("other bytes than expected, found and wanted named", () => {
    const redirect = redirectLeaf();
    const { ip } = redirect.site;
    lab.machine.memory.write(ip, callBytes(ip, ip));
    expect(() => redirect.enable()).toThrow(/is e8 fb ff ff ff, expected 0f 1f 44 00 00/);
    expect(lab.kernel.log.lines.join("\n")).toMatch(/ftrace bug.*\n.*failed to modify\n.*\] leaf\+0x0/);
  });
});
