// JavaScript, because starting the linter needs types of Node that nothing else here needs.

import { spawnSync } from "node:child_process";
import { readFileSync } from "node:fs";
import { expect, test } from "vitest";

const FIXTURE = "lint/module-state.fixture.ts";

test("the lint rule reports state of a module, and nothing else", () => {
  const { stdout } = spawnSync("node_modules/.bin/oxlint", ["-c", "lint/fixture.oxlintrc.json", "--format", "unix", FIXTURE], {
    encoding: "utf8",
  });
  const reported = [...stdout.matchAll(/fixture\.ts:(\d+):/gu)].map((match) => Number(match[1]));
  const lines = readFileSync(FIXTURE, "utf8").split("\n");
  const marked = lines.flatMap((line, index) => (/\breported|static count/u.test(line) ? [index + 1] : []));
  expect(reported.toSorted((first, second) => first - second)).toEqual(marked);
  expect(marked).toHaveLength(5);
});
